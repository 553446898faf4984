"Saving a run and going on with it: the state of callbacks, of others too, and files that cannot do."
import pytest
from fastai.callback.tracker import SaveModelCallback,EarlyStoppingCallback,ReduceLROnPlateau
from contextlib import nullcontext
from fastai.callback.training import GradientAccumulation
from fastai.callback.fp16 import MixedPrecision
from latentreg_fastai.callback.terms import KeepsState
from common import *

def test_other_callbacks_when_going_on(tmp_path):
    class Counter_(Callback):
        n = 0
        def state_dict(self): return dict(n=self.n)
        def load_state_dict(self, s): self.n = s['n']
        def after_batch(self): self.n += 1
    learn = new_learner(path=tmp_path)
    learn.fit(2, cbs=[c := Counter_(), TrainingSaver()])
    raises(["['counter_']", 'cbs'], lambda: new_learner(path=tmp_path).load_training('training'))
    new_learner(path=tmp_path).load_training('training', cbs=(d := Counter_()))
    assert d.n == c.n == 8

@pytest.mark.parametrize('make,is_set', [(lambda: ITRA(source='queue', warmup=0.), lambda cb: len(cb._queue)), (lambda: CenterLoss(), lambda cb: cb.centers is not None)], ids=['queue','centres'])
def test_state(make, is_set, tmp_path):
    "Goes through a file, and the next fit goes on from it"
    a,b,learn = make(),make(),new_learner()
    learn.fit(1, 1e-2, cbs=a)
    torch.save(a.state_dict(), tmp_path/'s.pth')
    b.load_state_dict(torch.load(tmp_path/'s.pth'))                                   # only tensors and containers: no pickle is needed
    assert is_set(b)
    learn.fit(1, 1e-2, cbs=b)
    term = learn.recorder.terms[b.term_name][0]
    assert is_set(b) and term > 0
    learn.fit(1, 1e-2, cbs=(c := make()))
    assert learn.recorder.terms[c.term_name][0] != term

# Equal to the run that was never interrupted

class CPUScaler(MixedPrecision):
    "fastai's `MixedPrecision` with a scaler that works on a CPU, and computations in float32"
    def before_fit(self): self.autocast,self.learn.scaler,self.scales = nullcontext(),torch.amp.GradScaler('cpu', init_scale=4., growth_interval=2),L()

class Overflow(Callback):
    "Makes the gradient infinite in some batches"
    run_valid = False
    def __init__(self, *iters): self.iters = iters
    def after_backward(self):
        if self.learn.epoch*3 + self.iter in self.iters: next(p for p in self.model.parameters() if p.grad is not None).grad[0] = math.inf

class OwnState(KeepsState, LatentCallback):
    "A running mean of the features that a user writes"
    def reset(self): self.mean = None
    def penalty(self, z, *yb):
        self.note(z.mean(0))
        return z.square().mean() if self.mean is None else (z - self.mean).square().mean()
    def learn_from(self, notes):
        for ok,m in notes: self.mean = torch.where(ok, m, 0) if self.mean is None else torch.where(ok, .9*self.mean + .1*m, self.mean)
    def state_dict(self): return dict(mean=self.mean)
    def load_state_dict(self, state): self.mean = state['mean']

TOGETHER = {
    'accumulation, pending': lambda: [GradientAccumulation(32)],                       # 24 samples an epoch: one, two or three batches wait at its end
    'accumulation of more than an epoch': lambda: [GradientAccumulation(56)],
    'accumulation and centres': lambda: [GradientAccumulation(32), CenterLoss()],
    'accumulation and a queue': lambda: [GradientAccumulation(32), ITRA(source='queue', warmup=0.)],
    'accumulation and a state of ones own': lambda: [GradientAccumulation(32), OwnState(2.)],
    'a scaler': lambda: [CPUScaler(), Overflow(1, 4, 7)],
    'a scaler, centres and accumulation': lambda: [CPUScaler(), Overflow(1, 5, 7), CenterLoss(), GradientAccumulation(16)],
    'a plateau': lambda: [ReduceLROnPlateau(monitor='valid_loss', patience=2, min_delta=10.)],   # never so much better: it waits, and reduces
    'early stopping': lambda: [EarlyStoppingCallback(patience=3, min_delta=10.)],
    'the smoothed loss': lambda: [EarlyStoppingCallback(monitor='train_loss', patience=20)],
    'monitor': lambda: [LatentMonitor(2)],                                             # counts batches over epochs
    'two of a kind': lambda: [EarlyStoppingCallback(patience=3, min_delta=10.), EarlyStoppingCallback(monitor='accuracy', patience=9)]}

def lr_of(learn): return [h['lr'] for h in learn.opt.hypers]

@pytest.mark.parametrize('at', [1,2])
@pytest.mark.parametrize('name', TOGETHER)
def test_going_on_is_as_if_never_interrupted(name, at, tmp_path):
    "Weights, gradients that wait, what counts, the row of the table and the end of training"
    class CutAt(Callback):
        def before_epoch(self):
            if self.epoch == at: raise CancelFitException
    plain = lambda **kw: new_learner(path=tmp_path, opt_func=SGD, **kw)
    def row(l): return [round(float(v), 6) for v in l.recorder.values[-1]]
    whole = plain()
    whole.fit(5, .1, cbs=TOGETHER[name]())
    plain().fit(5, .1, cbs=[*TOGETHER[name](), TrainingSaver('run'), CutAt()])
    learn,cbs = plain(seed=7),[*TOGETHER[name](), TrainingSaver('run')]
    set_seed(11)
    learn.load_training('run', cbs=cbs)
    learn.fit(5, .1, cbs=cbs, start_epoch=at)
    assert same(weights(learn), weights(whole)) and lr_of(learn) == lr_of(whole) and learn.epoch == whole.epoch and row(learn) == row(whole)
    for p,q in zip(learn.model.parameters(), whole.model.parameters()): assert torch.equal(p.grad, q.grad)
    assert not any('GoOn' in type(c).__name__ for c in learn.cbs)

def test_what_waits_is_what_differs(tmp_path):
    "The cases above are none in which nothing waits: without the gradients that wait the weights are others"
    name = 'accumulation, pending'
    new_learner(path=tmp_path, opt_func=SGD).fit(5, .1, cbs=[*TOGETHER[name](), TrainingSaver('run'), Cut()])
    whole,learn,cbs = new_learner(opt_func=SGD),new_learner(path=tmp_path, opt_func=SGD),TOGETHER[name]()
    whole.fit(5, .1, cbs=TOGETHER[name]())
    learn.load_training('run', cbs=cbs)
    assert any(p.grad.any() for p in learn.model.parameters())
    for p in learn.model.parameters(): p.grad.zero_()
    learn.fit(5, .1, cbs=cbs, start_epoch=2)
    assert not same(weights(learn), weights(whole))

def test_the_best_model_is_that_of_the_whole_run(tmp_path):
    "`SaveModelCallback` goes on with the best value so far, and does not save in epochs that are passed over"
    best = lambda: SaveModelCallback(monitor='valid_loss', fname='best')
    class Worse(Callback):
        "The loss is lowest in the second epoch"
        order = Recorder.order+1
        def after_epoch(self):
            if len(self.recorder.values[-1]): self.recorder.values[-1][1] = [3.,1.,2.,2.5][self.epoch]
    seen = []
    new_learner(path=tmp_path).fit(4, 1e-2, cbs=[best(), Worse(), TrainingSaver('run'), Cut(), Probe(after_epoch=lambda l: seen.append(weights(l)))])
    learn,cbs = new_learner(path=tmp_path, seed=7),[best(), Worse()]
    learn.load_training('run', cbs=cbs).fit(4, 1e-2, cbs=cbs, start_epoch=2)
    assert cbs[0].best == 1. and same(weights(learn), seen[1])                        # the model of the second epoch is loaded at the end

def test_a_cut_off_resumed_run_can_be_resumed_again(tmp_path):
    "What is passed over is not saved over: the file is the same until an epoch was trained"
    make = TOGETHER['a scaler, centres and accumulation']
    new_learner(path=tmp_path).fit(4, 1e-2, cbs=[*make(), TrainingSaver('run'), Cut()])
    before = (tmp_path/'models'/'run.pth').read_bytes()
    class Stop(Callback):
        order = 200
        def before_train(self): raise KeyboardInterrupt
    learn,cbs = new_learner(path=tmp_path),[*make(), TrainingSaver('run')]
    with pytest.raises(KeyboardInterrupt): learn.load_training('run', cbs=cbs).fit(4, 1e-2, cbs=[*cbs, Stop()], start_epoch=2)
    assert (tmp_path/'models'/'run.pth').read_bytes() == before

def test_a_forgotten_start_epoch(tmp_path):
    new_learner(path=tmp_path).fit(4, 1e-2, cbs=[TrainingSaver('run'), Cut()])
    learn = new_learner(path=tmp_path).load_training('run')
    with pytest.warns(UserWarning, match='saved behind epoch 1, and this fit begins with epoch 0.*start_epoch=2'): learn.fit(1, 1e-2)

# Files

def _saved(path, **kw):
    learn = new_learner(path=path, **kw)
    learn.fit(1, 1e-2, cbs=TrainingSaver('run'))
    return learn

def all_of(learn):
    "All that a load might change"
    opt = learn.opt and [(k, v.clone() if isinstance(v, Tensor) else v) for s in learn.opt.state_dict()['state'] for k,v in s.items()]
    return weights(learn),opt and str(opt),str(learn.opt and [dict(h) for h in learn.opt.hypers]),[p.grad if p.grad is None else p.grad.tolist() for p in learn.model.parameters()],random_state(),[dl.rng.getstate() for dl in learn.dls.loaders],list(learn.cbs)

def unchanged(a, b): return same(a[0], b[0]) and a[1:] == b[1:]

def old_file(path):
    "As it was written before"
    learn = new_learner(path=path); learn.fit(1, 1e-2)
    torch.save(dict(model=learn.model.state_dict(), opt=learn.opt.state_dict(), trained=[True], python=random.getstate(), numpy=np.random.get_state(), torch=torch.get_rng_state(), cuda=[], loaders=[None,None], callbacks={}), path/'models'/'run.pth')

def model_file(with_opt):
    def f(path): learn = new_learner(path=path); learn.fit(1, 1e-2); learn.save('run', with_opt=with_opt)
    return f
def export_file(path): new_learner(path=path).export('models/run.pth')
def cut_file(share):
    def f(path):
        _saved(path); p = path/'models'/'run.pth'
        p.write_bytes(p.read_bytes()[:int(share*p.stat().st_size)])
    return f
def damaged_file(path):
    _saved(path); p = path/'models'/'run.pth'; b = bytearray(p.read_bytes()); i = b.index(b'data.pkl') + 100
    b[i:i+200] = b'\x00'*200; p.write_bytes(bytes(b))
def other_form(path):
    _saved(path); p = path/'models'/'run.pth'; s = torch.load(p); s['form'] = s['form'][:-1] + '9'; torch.save(s, p)
class Evil:
    ran = []
    def __reduce__(self): return Evil.ran.append, (1,)
def evil_file(path): torch.save(dict(form=Evil(), trained=1), path/'models'/'run.pth')
def some_tensor(path): torch.save(torch.randn(3), path/'models'/'run.pth')

FILES = {'learn.save with its optimizer': (model_file(True), ['learn.load']), 'learn.save': (model_file(False), ['learn.load']), 'learn.export': (export_file, ['load_learner']), 'empty': (cut_file(0), ['cut off']),
         'half': (cut_file(.5), ['cut off']), 'nearly whole': (cut_file(.999), ['cut off']), 'damaged': (damaged_file, ['damaged']), 'earlier version': (old_file, ['earlier version', "['model']"]), 'later version': (other_form, ['another version']),
         'something that runs': (evil_file, ['cannot be read']), 'a tensor': (some_tensor, ['not the state of a run'])}
@pytest.mark.parametrize('name', FILES)
def test_files_that_are_none(name, tmp_path):
    "A clear error that names the file, and nothing is changed, nor run"
    make,match = FILES[name]
    (tmp_path/'models').mkdir()
    make(tmp_path)
    for learn in (new_learner(path=tmp_path), (l := new_learner(path=tmp_path), l.fit(1, 1e-2))[0]):
        before = all_of(learn)
        raises(['load_training', 'run.pth', *match], lambda: learn.load_training('run'))
        assert unchanged(before, all_of(learn))
    assert not Evil.ran

def test_no_file(tmp_path): raises(['load_training', 'there is no', 'run.pth', 'save_training'], lambda: new_learner(path=tmp_path).load_training('run'), FileNotFoundError)
def test_nothing_to_save(tmp_path): raises(['save_training', 'first fit'], lambda: new_learner(path=tmp_path).save_training('run'))

def two_groups(m): return [list(m[0].parameters()), list(m[1:].parameters())]
def wide():
    m = net(); m[-1] = nn.Linear(8, 4)
    return m
def frozen():
    m = net(); m[0].requires_grad_(False)
    return m
BAD_STATE = type('Bad', (LatentCallback,), dict(penalty=lambda self, z, *yb: z.square().mean(), state_dict=lambda self: {}, load_state_dict=lambda self, s: s['mean']))
OTHERS = {'wider model': (dict(model=wide), ['5.weight', '(3, 8)', '(4, 8)']), 'other layers': (dict(model=lambda: net()[:4]), ['`4.0.weight`', 'missing']), 'other precision': (dict(model=lambda: net().double()), ['float64']),
          'frozen': (dict(model=frozen), ['freeze']), 'other optimizer': (dict(opt_func=SGD), ['adam_step', 'sgd_step']), 'torch optimizer': (dict(opt_func=partial(OptimWrapper, opt=torch.optim.AdamW)), ['AdamW']),
          'groups': (dict(splitter=two_groups), ['1 groups', '2 here']), 'one loader': (dict(dls=lambda: DataLoaders(new_learner().dls.train)), ['2 data loaders', '1 here'])}
@pytest.mark.parametrize('name', OTHERS)
def test_a_learner_that_it_does_not_fit(name, tmp_path):
    "Nothing of it is changed, nor of the callbacks"
    kw,match = OTHERS[name]
    new_learner(path=tmp_path).fit(1, 1e-2, cbs=[TrainingSaver('run'), CenterLoss()])
    learn = new_learner(path=tmp_path, **{k: v() if k in ('model','dls') else v for k,v in kw.items()})
    before,cb = all_of(learn),CenterLoss()
    raises(['load_training', 'run.pth', *match], lambda: learn.load_training('run', cbs=cb))
    assert unchanged(before, all_of(learn)) and cb.centers is None and not cb._restored and learn.opt is None

def test_a_state_that_a_callback_cannot_take(tmp_path):
    "The callbacks before it are put back too"
    new_learner(path=tmp_path).fit(1, 1e-2, cbs=[TrainingSaver('run'), CenterLoss(), BAD_STATE()])
    learn,cb = new_learner(path=tmp_path),CenterLoss()
    before = all_of(learn)
    raises(['load_training', 'run.pth', 'the state of bad', 'KeyError'], lambda: learn.load_training('run', cbs=[cb, BAD_STATE()]))
    assert unchanged(before, all_of(learn)) and cb.centers is None and not cb._restored

def test_callbacks_of_fastai_that_are_missing(tmp_path):
    new_learner(path=tmp_path).fit(1, 1e-2, cbs=[TrainingSaver('run'), GradientAccumulation(32)])
    raises(['gradient_accumulation', 'pass the same'], lambda: new_learner(path=tmp_path).load_training('run'))
    learn = new_learner(path=tmp_path).load_training('run', cbs=GradientAccumulation(32))
    raises(['gradient_accumulation', 'pass the same', '`fit`'], lambda: learn.fit(2, 1e-2, start_epoch=1))

@pytest.mark.parametrize('held', [np.zeros(3), {1,2}, lambda: 0, nn.Linear(2, 2)], ids=['array','set','function','module'])
def test_what_a_safe_file_cannot_hold(held, tmp_path):
    cb = type('Mine', (BAD_STATE,), dict(state_dict=lambda self: dict(mean=held)))()
    raises(['save_training', '`state_dict`', type(held).__name__, 'tensor'], lambda: new_learner(path=tmp_path).fit(1, 1e-2, cbs=[cb, TrainingSaver('run')]), TypeError)
    assert not list((tmp_path/'models').glob('*')) if (tmp_path/'models').exists() else True

def test_numbers_of_numpy_are_numbers(tmp_path):
    cb = type('Mine', (BAD_STATE,), dict(state_dict=lambda self: dict(mean=np.float32(1.5), n=(np.int64(3),[np.bool_(True)]), x=TensorCategory(2)), load_state_dict=lambda self, s: got.append(s)))
    got = []
    new_learner(path=tmp_path).fit(1, 1e-2, cbs=[cb(), TrainingSaver('run')])
    new_learner(path=tmp_path).load_training('run', cbs=cb())
    assert got == [dict(mean=1.5, n=(3,[True]), x=torch.tensor(2))] and [type(v) for v in (got[0]['mean'],got[0]['n'][0],got[0]['x'])] == [float,int,Tensor]

OPTIMIZERS = {'Adam': Adam, 'SGD': partial(SGD, mom=.9), 'ranger': ranger, 'Lamb': Lamb, 'torch AdamW': partial(OptimWrapper, opt=torch.optim.AdamW), 'torch SGD': partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9))}
@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('splitter', [None,two_groups])
def test_any_optimizer(name, splitter, tmp_path):
    "It is read with `weights_only=True`, and the run is that which was never interrupted"
    kw = dict(path=tmp_path, opt_func=OPTIMIZERS[name], **({} if splitter is None else dict(splitter=splitter)))
    whole = new_learner(**kw)
    whole.fit_one_cycle(4, 1e-2)
    new_learner(**kw).fit_one_cycle(4, 1e-2, cbs=[TrainingSaver('run'), Cut()])
    assert torch.load(tmp_path/'models'/'run.pth', weights_only=True)['epoch'] == 1
    learn = new_learner(seed=7, **kw).load_training('run')
    learn.fit_one_cycle(4, 1e-2, start_epoch=2)
    assert same(weights(learn), weights(whole))

def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    "Neither the unfinished file nor damage to the one before; what a kill has left is gone with the next save or load"
    learn = _saved(tmp_path)
    d = tmp_path/'models'
    before = (d/'run.pth').read_bytes()
    def half(state, f): Path(f).write_bytes(b'half'); raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(torch, 'save', half)
        with pytest.raises(KeyboardInterrupt): learn.save_training('run')
    assert [p.name for p in d.iterdir()] == ['run.pth'] and (d/'run.pth').read_bytes() == before
    for clean in (lambda: new_learner(path=tmp_path).load_training('run'), lambda: learn.save_training('run')):
        (d/'run.pth.part').write_bytes(b'killed')
        clean()
        assert [p.name for p in d.iterdir()] == ['run.pth']

def test_a_file_is_no_larger_than_what_it_holds(tmp_path):
    "A view does not bring the tensor that it is of"
    big = torch.zeros(1_000_000)
    cb = type('Mine', (BAD_STATE,), dict(state_dict=lambda self: dict(mean=big[:2])))()
    new_learner(path=tmp_path).fit(1, 1e-2, cbs=[cb, TrainingSaver('run')])
    assert (tmp_path/'models'/'run.pth').stat().st_size < 200_000
