"What a callback keeps, and for how long: states that follow steps, shapes, batches and fits, exports, and how callbacks join and leave learners."
import gc, pickle, types
import pytest
from contextlib import nullcontext
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientAccumulation
from latentreg_fastai.callback.core import KeepsState,LeftOut
from common import *

# A state is learnt from batches with whose gradients a step was taken

class Cancel(Callback):
    "Raises `exc` at `event` of the batches `at`, counted over the fit"
    run_valid = False
    def __init__(self, exc, event, at, order=1000):
        self.exc,self.at,self.order = exc,at,order
        object.__setattr__(self, event, self.fail)
    def fail(self):
        if self.learn.epoch*3 + self.iter in self.at: raise self.exc

class CPUScaler(MixedPrecision):
    "fastai's `MixedPrecision` with a scaler that works on a CPU, and computations in float32"
    def before_fit(self): self.autocast,self.learn.scaler,self.scales = nullcontext(),torch.amp.GradScaler('cpu', init_scale=4.),L()

class Overflow(Callback):
    run_valid = False
    def __init__(self, *at): self.at = at
    def after_backward(self):
        if self.learn.epoch*3 + self.iter in self.at: next(p for p in self.model.parameters() if p.grad is not None).grad[0] = math.inf

class NaNs(Callback):
    "The batches `at` are NaN, or one number of them, and their gradients are 0, as a user may see to"
    order,run_valid = -5,False
    def __init__(self, *at, whole=True): self.at,self.whole = at,whole
    def before_batch(self):
        if self.learn.epoch*3 + self.iter not in self.at: return
        x = self.x.clone()
        if self.whole: x[:] = math.nan
        else: x[3,0,2,2] = math.inf
        self.learn.xb = (x,)
    def after_backward(self):
        for p in self.model.parameters():
            if p.grad is not None: torch.nan_to_num_(p.grad, 0., 0., 0.)

E_ = {'batch': CancelBatchException, 'backward': CancelBackwardException, 'step': CancelStepException}
WAYS = {'none': lambda: [], 'scaler': lambda: [CPUScaler(), Overflow(0, 2, 4)], 'accumulation': lambda: [GradientAccumulation(16)], 'long accumulation': lambda: [GradientAccumulation(40)],
        'accumulation, skipped': lambda: [GradientAccumulation(16), CPUScaler(), Overflow(2, 3)], 'accumulation, cancelled step': lambda: [GradientAccumulation(16), Cancel(CancelStepException, 'before_step', (1,5))],
        **{f'{k} at {e}': (lambda k=k, e=e: [Cancel(E_[k], e, (0,2,4))]) for k,es in dict(batch='after_pred after_loss before_backward after_backward before_step', backward='before_backward', step='before_step').items() for e in es.split()},
        **{f'{k} at {e}, before': (lambda k=k, e=e: [Cancel(E_[k], e, (0,2,4), order=-3)]) for k,e in (('batch','before_backward'), ('batch','after_backward'), ('backward','before_backward'), ('step','before_step'))},
        'accumulation, cancelled backward': lambda: [GradientAccumulation(16), Cancel(CancelBackwardException, 'before_backward', (0,3))]}

def follow_steps(learn, features, taken):
    """A callback that sees what the optimizer does, by its methods: calls `taken` with the (features, labels) of the batches whose gradients are in a step"""
    inside,state = [],{}
    def wrap(l):
        step,zero = l.opt.step,l.opt.zero_grad
        def stepping(*a, **k): res = step(*a, **k); taken(list(inside)); return res
        def zeroing(*a, **k): inside.clear(); return zero(*a, **k)
        l.opt.step,l.opt.zero_grad = stepping,zeroing
    def before(l): state.update(zy=(features(l.model, l.x).detach(), l.y.clone()), backward=l._backward)
    def now(l):                                          # called within fastai's own backward pass
        l.loss_grad.register_hook(lambda g: inside.append(state['zy']) and None)
    return [Probe(order=-9, run_valid=False, before_fit=wrap), Probe(order=-4, run_valid=False, before_batch=before), Probe(order=2000, run_valid=False, before_backward=now)]

@pytest.mark.parametrize('way', WAYS)
def test_centres_follow_the_steps(way):
    c = torch.zeros(3, 8)
    seen = []
    def taken(batches):
        if not batches: return
        z,y = (torch.cat(ts) for ts in zip(*batches))
        old = c.clone()
        for k in range(3):
            delta,n = torch.zeros(8),0
            for i in range(len(z)):
                if y[i] == k: delta += old[k] - z[i]; n += 1
            c[k] -= .5*delta/(1 + n)
        seen.append(len(z))
    cb = CenterLoss(.3)
    learn = new_learner(model=tanh_net(), opt_func=SGD)
    def same_centres(l): torch.testing.assert_close(torch.zeros(3, 8) if cb.centers is None else cb.centers, c)
    learn.fit(2, .1, cbs=[*WAYS[way](), cb, *follow_steps(learn, lambda m,x: m[:3](x), taken), Probe(order=2000, run_valid=False, after_batch=same_centres)])
    same_centres(learn)
    assert c.isfinite().all() and len(seen) == {'none': 6, 'scaler': 3, 'accumulation': 3, 'long accumulation': 1}.get(way, len(seen)) and 0 < len(seen) <= 6
    if way == 'accumulation': assert seen == [16]*3

@pytest.mark.parametrize('way', WAYS)
def test_the_queue_follows_the_steps(way):
    want,cb = [],ITRA(source='queue', queue_len=3, warmup=0.)
    learn = new_learner(model=tanh_net(), opt_func=SGD)
    def same_queue(l):
        assert len(cb._queue) == len(want[-3:])
        for (ok,z,y),(z0,y0) in zip(cb._queue, want[-3:]): assert ok; torch.testing.assert_close(z, z0); assert torch.equal(y, y0)
    learn.fit(2, .1, cbs=[*WAYS[way](), cb, *follow_steps(learn, lambda m,x: m[:3](x), want.extend), Probe(order=2000, run_valid=False, after_batch=same_queue)])
    same_queue(learn)
    assert want

def test_accumulated_batches_are_one_large_batch():
    "The centres after one step over two batches are those after one batch of their rows"
    x,y = data()
    res = []
    for bs,cbs in ((8,[GradientAccumulation(16)]), (16,[])):
        learn = new_learner(model=tanh_net(), opt_func=SGD, dls=DataLoaders(*[TensorDL((x[:16],y[:16]), bs=bs)]*2))
        cb = CenterLoss()
        learn.fit(1, 1e-9, cbs=[cb,*cbs])
        res.append(cb.centers)
    torch.testing.assert_close(*res); assert res[0].abs().sum() > 1

@pytest.mark.parametrize('whole', [True,False])
def test_centres_of_what_is_not_finite(whole):
    "A batch with NaN, or with one infinite number, moves no centre, and the next terms are those of the centres that there are"
    cb,c,terms = CenterLoss(.3),torch.zeros(3, 8),[]
    learn = new_learner(model=linear_net(), opt_func=SGD)
    def look(l):
        z = l.model[:2](l.x).detach()
        if not z.isfinite().all(): return
        terms.append(.5*sum((z[i] - c[l.y[i]]).square().sum() for i in range(8)).item()/8)
        close(cb.term.item(), terms[-1], eps=1e-4)
        old = c.clone()
        for k in range(3): c[k] -= .5*sum([old[k] - z[i] for i in range(8) if l.y[i] == k], torch.zeros(8))/(1 + (l.y == k).sum())
    learn.fit(2, 1e-3, cbs=[cb, NaNs(1, 4, whole=whole), Probe(order=5, run_valid=False, after_loss=look)])
    torch.testing.assert_close(cb.centers, c); assert len(terms) == 4 and c.isfinite().all()

@pytest.mark.parametrize('classwise', [True,False])
@pytest.mark.parametrize('bad', [(0,), (1,), (0,1), (1,2), (2,3,4)], ids=str)
def test_a_queue_of_what_is_not_finite(bad, classwise):
    "In place of a batch that was not finite stand the rows of others in the queue; where there are none the term is 0"
    cb,zs = ITRA(source='queue', queue_len=2, warmup=0., classwise=classwise),[]
    learn = new_learner(model=linear_net(), opt_func=SGD)
    def mmd_by_hand(z1, z2, s):
        k = lambda a,b: (-(a[:,None]-b).square().sum(-1)/s).exp().mean()
        return (k(z1, z1) + k(z2, z2) - 2*k(z1, z2)).clamp_min(0).sqrt()
    def look(l):
        z,y,i = l.model[:2](l.x).detach(),l.y.clone(),len(zs)
        if i not in bad:
            held = zs[-2:]
            good = [b for b in held if b is not None]
            if not good: assert cb.term.item() == 0
            else:
                z2,y2 = (torch.cat([(good*2)[j][k] for j in range(len(held))]) for k in (0,1))
                s = torch.pdist(torch.cat([z,z2])).square().median()
                want = mmd_by_hand(z, z2, s) if not classwise else sum(mmd_by_hand(z[y==k], z2[y2==k], s) for k in range(3) if (y==k).any() and (y2==k).any())/3
                close(cb.term.item(), want.item(), eps=1e-4)
        zs.append(None if i in bad else (z,y))
    learn.fit(2, 1e-3, cbs=[cb, NaNs(*bad), Probe(order=5, run_valid=False, after_loss=look)])
    assert len(zs) == 6 and all(p.isfinite().all() for p in learn.model.parameters())

@pytest.mark.parametrize('make', [CenterLoss, lambda: ITRA(source='queue', warmup=0.)], ids=['centres','queue'])
def test_a_loss_that_is_not_finite(make):
    "Its features are, and yet the step is none to learn from"
    learn,cb = new_learner(model=tanh_net(), loss_func=lambda p,y: F.cross_entropy(p, y)*(math.inf if learn.training and learn.iter == 1 else 1.), opt_func=SGD),make()
    noted = []
    learn.fit(1, 1e-3, cbs=[cb, NaNs(), Probe(run_valid=False, after_backward=lambda l: noted.append([n[0].item() for n in cb.waiting]))])
    assert noted == [[True],[False],[True]]

def test_a_state_is_a_copy():
    "What is taken from one callback and given to another belongs to each"
    a,b = CenterLoss(),CenterLoss()
    new_learner(model=tanh_net()).fit(1, 1e-2, cbs=a)
    state,before = a.state_dict(),a.centers.clone()
    b.load_state_dict(state)
    new_learner(model=tanh_net()).fit(1, 1e-2, cbs=b)
    assert torch.equal(a.centers, before) and torch.equal(state['centers'], before) and not torch.equal(b.centers, before)

# Shapes

def of_sizes(sizes, n=6, dtype=torch.float32):
    "Loaders of batches of images of several sizes"
    g = torch.Generator().manual_seed(0)
    bs = [(torch.randn(n, 1, s, s, generator=g).to(dtype), torch.arange(n) % 3) for s in sizes]
    return DataLoaders(bs, bs, device='cpu')

def size_net(): set_seed(0); return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
KEEPS = {'centres': lambda **kw: CenterLoss(**kw), 'queue': lambda **kw: ITRA(source='queue', warmup=0., **kw), 'whole queue': lambda **kw: ITRA(source='queue', warmup=0., classwise=False, **kw)}

@pytest.mark.parametrize('name', KEEPS)
def test_features_that_vary_in_size(name):
    "Refused where they are kept, fine behind the pooling"
    make = KEEPS[name]
    raises([type(make()).__name__, '`layer`', 'pooling'], lambda: new_learner(model=size_net(), dls=of_sizes((8,8,6)), metrics=[]).fit(1, 1e-3, cbs=make(layer='0')))
    new_learner(model=size_net(), dls=of_sizes((8,8,6)), metrics=[]).fit(1, 1e-3, cbs=make(layer='2'))

@pytest.mark.parametrize('name', KEEPS)
def test_another_fit_of_other_classes_layers_and_precision(name):
    "A fit starts anew, whatever the one before was of"
    cb = KEEPS[name]()
    new_learner(model=tanh_net()).fit(1, 1e-3, cbs=cb)
    x,y = data(n_classes=5)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    new_learner(model=wide, dls=tensor_dls((x.double(),y), (x.double(),y), bs=8, device='cpu')).fit(1, 1e-3, cbs=cb)
    if name == 'centres': assert cb.centers.shape == (5,6) and cb.centers.dtype == torch.float64

@pytest.mark.parametrize('name', KEEPS)
def test_a_loaded_state_of_other_features(name):
    a,b = KEEPS[name](),KEEPS[name](layer='0')
    new_learner(model=tanh_net()).fit(1, 1e-3, cbs=a)
    b.load_state_dict(a.state_dict())
    raises([type(a).__name__, 'loaded', '`layer`'], lambda: new_learner(model=tanh_net()).fit(1, 1e-3, cbs=b))

@pytest.mark.parametrize('name', ['centres','queue'])
def test_a_loaded_state_of_other_classes(name):
    x,y = data(n_classes=5)
    five = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 5))
    a,b = KEEPS[name](),KEEPS[name]()
    new_learner(model=five, dls=tensor_dls((x,y), (x,y), bs=8, device='cpu')).fit(1, 1e-3, cbs=a)
    b.load_state_dict(a.state_dict())
    raises([type(a).__name__, '3', '5' if name == 'centres' else '4', 'loaded'], lambda: new_learner(model=tanh_net()).fit(1, 1e-3, cbs=b))

def test_unlabelled_batches_of_another_loader():
    "The place in a pass is of a loader with as many batches"
    a,b = (SemiSupervisedMixup(TensorDL(data(n, seed=3), bs=4, shuffle=True), rampup=0.) for n in (20,8))
    new_learner().fit(1, 1e-3, cbs=a)
    raises(['SemiSupervisedMixup', '`unlabeled`', '5', '2'], lambda: b.load_state_dict(a.state_dict()))

# What is kept between batches, after a fit, and in an export

def reached(*objs):
    "All objects that `objs` hold, without going into classes, modules and the globals of functions"
    seen,todo = {},list(objs)
    while todo:
        o = todo.pop()
        if id(o) in seen or isinstance(o, (type,types.ModuleType,str,int,float,np.ndarray)): continue
        seen[id(o)] = o
        if isinstance(o, types.FunctionType): todo += [c.cell_contents for c in o.__closure__ or () if c != types.CellType()] + list(o.__defaults__ or ())
        elif isinstance(o, types.BuiltinFunctionType): continue
        elif isinstance(o, types.MethodType): todo += [o.__self__]
        else: todo += [r for r in gc.get_referents(o)]
    return list(seen.values())

def leftovers(cb, model, given=()):
    "What `cb` holds of a batch, the model or the loaders, but for what it was `given`"
    more = [c for c in (getattr(cb, 'rows', None), *getattr(cb, '_companions', ()), *getattr(cb, '_measures', ())) if c is not None]
    own = {id(o) for o in reached(*given)}
    all_ = [o for o in reached(cb, *more) if id(o) not in own]
    params = {id(m) for m in model.modules()} | {id(p) for p in model.parameters()}
    return [o for o in all_ if (isinstance(o, Tensor) and (o.grad_fn is not None or (o.ndim and o.numel() >= 8))) or isinstance(o, (DataLoader,DataLoaders,torch.utils.data.DataLoader,Learner)) or id(o) in params]

def given_to(cb): return [v for v in (getattr(cb, 'vae', None), getattr(cb, 'unlabeled', None)) if v is not None]
KEPT = {'CenterLoss': ('centers',), 'ITRA-c queue': ('_queue',)}   # what a callback is there to keep

@pytest.mark.parametrize('name', CALLBACKS)
@pytest.mark.parametrize('event', [None,'before_train','before_batch','after_pred','after_loss','before_backward','after_backward','before_step','after_step','after_batch','after_train','before_validate','after_epoch','after_fit'])
def test_nothing_of_a_fit_is_kept(name, event):
    "After a fit, and after an error at any event, the callback holds no prediction, no batch, no model and no loader"
    for exc in ((KeyboardInterrupt,) if event else ()) or (None,):
        learn,cb = learner_of(name)(),CALLBACKS[name][0]()
        stop = Probe(**{event: lambda l: (_ for _ in ()).throw(exc('stop'))} if event != 'before_train' else {'before_train': lambda l: (_ for _ in ()).throw(exc('stop'))}) if event else None
        try: learn.fit(1, 1e-3, cbs=[cb] + L(stop))
        except KeyboardInterrupt: assert event
        state = {id(o) for k in KEPT.get(name, ()) for o in reached(getattr(cb, k, None))}
        left = [o for o in leftovers(cb, learn.model, given_to(cb)) if id(o) not in state]
        assert not left, [(type(o), getattr(o, 'shape', '')) for o in left]
        assert learn.remove_cbs(Recorder) is learn       # the learner is still whole

def holds_data(learner_file, x):
    "Are numbers of the data in the file?"
    b = learner_file.read_bytes()
    return any(r.numpy().tobytes()[:64] in b for r in x)

@pytest.mark.parametrize('name', OF_A_NET)
@pytest.mark.parametrize('when', ['before','after','KeyboardInterrupt','RuntimeError'])
def test_an_export_holds_no_data(name, when, tmp_path):
    "Before a fit, after one, and after an error at any event; it predicts the same"
    events = [None] if when in ('before','after') else ['before_batch','after_pred','after_loss','after_backward','before_step','after_batch','after_train']
    (x,y),u = data(),data(20, seed=3)[0]
    for event in events:
        learn = new_learner(cbs=CALLBACKS[name][0](), path=tmp_path)
        if event: learn.add_cb(Probe(order=1000, run_valid=False, **{event: lambda l: (_ for _ in ()).throw(getattr(__import__('builtins'), when)('stop'))}))
        if when != 'before':
            try: learn.fit(2, 1e-3)
            except (KeyboardInterrupt,RuntimeError): assert event
        learn.remove_cbs(Probe)
        learn.export('m.pkl')
        assert not holds_data(tmp_path/'m.pkl', x) and not holds_data(tmp_path/'m.pkl', u)
        loaded = load_learner(tmp_path/'m.pkl')
        dl = learn.dls.valid
        assert torch.equal(loaded.get_preds(dl=dl)[0], learn.get_preds()[0])
        learn.remove_cbs(LayerCallback); learn.export('without.pkl')
        extra = (tmp_path/'m.pkl').stat().st_size - (tmp_path/'without.pkl').stat().st_size
        assert extra < 16_000, extra                     # class names and arguments
        assert not any(isinstance(o, (torch.utils.data.DataLoader,Generator)) and len(getattr(o, 'dataset', ())) for c in loaded.cbs for o in reached(vars(c).get('unlabeled')))

@pytest.mark.parametrize('kind', ['TensorDL','TfmdDL','torch','torch with workers','a list','a generator class'])
def test_unlabelled_loaders_of_any_kind_are_left_out(kind, tmp_path):
    x,y = data(20, seed=3)
    class Gen:
        def __iter__(self): yield from [x[:8],x[8:16]]
    ds = torch.utils.data.TensorDataset(x, y)
    dl = {'TensorDL': lambda: TensorDL((x,y), bs=8), 'TfmdDL': lambda: TfmdDL(list(zip(x, y)), bs=8, num_workers=0), 'torch': lambda: torch.utils.data.DataLoader(ds, 8), 'torch with workers': lambda: torch.utils.data.DataLoader(ds, 8, num_workers=1, persistent_workers=True),
          'a list': lambda: [x[:8],x[8:16]], 'a generator class': Gen}[kind]()
    learn = new_learner(cbs=SemiSupervisedMixup(dl, rampup=0.), path=tmp_path)
    learn.fit(1, 1e-3)
    learn.export('m.pkl')
    assert not holds_data(tmp_path/'m.pkl', x)
    loaded = load_learner(tmp_path/'m.pkl')
    loaded.dls,loaded.opt = learn.dls,None
    raises(['SemiSupervisedMixup', '`unlabeled`', 'learn.semi_supervised_mixup.unlabeled'], lambda: loaded.fit(1, 1e-3))
    loaded.semi_supervised_mixup.unlabeled = dl
    loaded.fit(1, 1e-3)

@pytest.mark.parametrize('make,attr', [(lambda y: ITRA(matched=True, item_labels=y, warmup=0.), 'item_labels'), (lambda y: PhantomEmbedding(labels=y), 'labels')], ids=['ITRA','Phantom'])
@pytest.mark.parametrize('kind', [list,np.asarray,torch.as_tensor])
def test_labels_that_were_given_are_left_out_too(make, attr, kind, tmp_path):
    y = kind(data()[1].tolist())
    learn = new_learner(cbs=(cb := make(y)), path=tmp_path)
    learn.fit(1, 1e-3); learn.export('m.pkl')
    loaded = load_learner(tmp_path/'m.pkl')
    its = getattr(loaded, cb.name)
    assert isinstance(getattr(its, attr), LeftOut) and getattr(cb, attr) is y
    loaded.dls,loaded.opt = learn.dls,None
    raises([type(cb).__name__, f'`{attr}`', f'learn.{cb.name}.{attr}'], lambda: loaded.fit(1, 1e-3))
    setattr(its, attr, y)
    loaded.fit(1, 1e-3)

@pytest.mark.parametrize('copier', [copy,deepcopy])
def test_a_copy_has_the_data(copier):
    learn = new_learner(cbs=SemiSupervisedMixup(UNLABELED, rampup=0.))
    learn.fit(1, 1e-3)
    twin = copier(learn.semi_supervised_mixup)
    assert type(twin.unlabeled) is type(UNLABELED) and twin.hooks is not learn.semi_supervised_mixup.hooks
    if copier is deepcopy: twin.learn.fit(1, 1e-3)
    else: twin._learn = None; new_learner().fit(1, 1e-3, cbs=twin)

@pytest.mark.parametrize('name', CALLBACKS)
@pytest.mark.parametrize('exc', [CancelTrainException,CancelFitException,KeyboardInterrupt])
def test_a_fit_that_ends_before_it_begins(name, exc):
    "Another callback cancels the training of the first epoch before this one has looked at anything"
    learn,cb = learner_of(name)(),CALLBACKS[name][0]()
    try: learn.fit(1, 1e-3, cbs=[cb, Probe(order=-9, before_train=lambda l: (_ for _ in ()).throw(exc()))])
    except KeyboardInterrupt: pass
    except AttributeError as e: assert 'in `Recorder`' in str(e)                      # fastai's own
    restart(learn).fit_one_cycle(2, 1e-2, cbs=cb)
    other = learner_of(name)()
    other.fit_one_cycle(2, 1e-2, cbs=CALLBACKS[name][0]())
    assert same(weights(learn), weights(other))

# Joining and leaving

def bad_callbacks():
    pen = dict(penalty=lambda self, z, *yb: z.square().mean())
    mine = lambda base=LatentCallback, **kw: type('Mine', (base,), {**pen, **kw})
    def no_super(): return mine(__init__=lambda self: None)()
    def taken(): cb = mine()(); cb.site = 3; return cb
    def own_event(): cb = mine()(); cb.before_batch = lambda: None; return cb
    def raising(self): raise RuntimeError('a fault of the user')
    def companion(self): return [type('Odd', (Callback,), dict(name=property(raising)))()]
    return {'column is none': (mine(column=3), TypeError, '`column`'), 'column raises': (mine(column=property(raising)), RuntimeError, 'a fault of the user'), 'companions': (mine(companions=lambda self: 3), TypeError, '`companions`'),
            'companions raise': (mine(companions=raising), RuntimeError, 'a fault of the user'), 'a companion that raises': (mine(companions=companion), Exception, 'fault'), 'no super': (no_super, TypeError, 'super().__init__'),
            'taken': (taken, TypeError, 'another name'), 'an event of the instance': (own_event, TypeError, 'super().before_batch'),
            'DisturbLabel, taken': (lambda: _with(DisturbLabel(), site=1), TypeError, 'another name'), 'Phantom, no k': (lambda: _without(PhantomEmbedding(), 'source'), Exception, ''),
            'ITRA, wrong layer': (lambda: ITRA(layer='nowhere'), ValueError, 'nowhere'), 'VR, wrong layer': (lambda: VarianceRegularizer(layer=3.5), Exception, '')}
def _with(cb, **kw):
    for k,v in kw.items(): setattr(cb, k, v)
    return cb
def _without(cb, k): delattr(cb, k); return cb

@pytest.mark.parametrize('name', bad_callbacks())
@pytest.mark.parametrize('where', [0,1,2])
def test_an_error_as_callbacks_join_leaves_none(name, where):
    "Whatever stands before it or behind it; and the learner then trains as one that knows nothing of them"
    make,exc,match = bad_callbacks()[name]
    learn = new_learner()
    before,attrs = list(learn.cbs),set(vars(learn))
    cbs = [VarianceRegularizer(), WeightL1()]
    cbs.insert(where, make())
    with pytest.raises(exc, match=re.escape(match)): learn.fit(1, 1e-3, cbs=cbs)
    assert list(learn.cbs) == before and not hooks(learn.model) and all(c.learn is None for c in cbs)
    assert not {k for k in set(vars(learn)) - attrs if isinstance(getattr(learn, k), LayerCallback)}
    restart(learn).fit(1, 1e-3)
    fresh = new_learner(); fresh.fit(1, 1e-3)
    assert same(weights(learn), weights(fresh))

@pytest.mark.parametrize('name', bad_callbacks())
def test_a_bad_callback_on_the_learner(name):
    "The learner can be made, validates and predicts; each of its fits says what is wrong; without the callback all is well"
    make,exc,match = bad_callbacks()[name]
    learn = new_learner(cbs=[VarianceRegularizer(), cb := make()])
    before = list(learn.cbs)
    learn.validate(); learn.get_preds()
    for _ in range(2):
        with pytest.raises(exc, match=re.escape(match)): learn.fit(1, 1e-3)
        assert set(map(id, before)) == set(map(id, learn.cbs))
    learn.remove_cb(cb)
    learn.fit(1, 1e-3)

@pytest.mark.parametrize('name', CALLBACKS)
def test_given_twice(name):
    "In the constructor and in `fit`, and twice in a list: refused, and all is as it was"
    cb = CALLBACKS[name][0]()
    learn = learner_of(name)(cbs=cb)
    before,attrs = list(learn.cbs),{k: v for k,v in vars(learn).items() if isinstance(v, Callback)}
    for _ in range(2):
        raises([type(cb).__name__, 'twice', 'give it once'], lambda: learn.fit(1, 1e-3, cbs=cb))
        assert list(learn.cbs) == before and {k: v for k,v in vars(learn).items() if isinstance(v, Callback)} == attrs and cb.learn is learn and not hooks(learn.model)
    raises(['twice'], lambda: learn.fit(1, 1e-3, cbs=[cb, cb]))
    assert list(learn.cbs) == before
    restart(learn).fit_one_cycle(2, 1e-2)
    other = learner_of(name)()
    other.fit_one_cycle(2, 1e-2, cbs=CALLBACKS[name][0]())
    assert same(weights(learn), weights(other))
    alone,kept = learner_of(name)(),CALLBACKS[name][0]()
    mine = list(alone.cbs)
    raises(['twice'], lambda: alone.fit(1, 1e-3, cbs=[kept, kept]))
    assert list(alone.cbs) == mine and kept.learn is None
    restart(alone).fit_one_cycle(2, 1e-2, cbs=kept)
    assert same(weights(alone), weights(other))

@pytest.mark.parametrize('name', CALLBACKS)
def test_one_list_of_callbacks_in_two_learners(name):
    "The second learner has them; the first says so when it is to train, and goes on without them, or with them again"
    cbs = [CALLBACKS[name][0]()]
    a = learner_of(name)(cbs=cbs)
    before = [type(c) for c in a.cbs]
    b = learner_of(name)(cbs=cbs)
    b.fit_one_cycle(2, 1e-2)
    c = learner_of(name)()
    c.fit_one_cycle(2, 1e-2, cbs=CALLBACKS[name][0]())
    assert same(weights(b), weights(c))
    a.validate()
    raises([type(cbs[0]).__name__, 'another learner', 'of its own'], lambda: a.fit(1, 1e-2))
    assert not hooks(a.model) and not hooks(b.model) and cbs[0].learn is b
    b.remove_cb(cbs[0])
    a.add_cb(cbs[0])
    assert sorted(map(str, before)) == sorted(str(type(c)) for c in a.cbs)
    restart(a).fit_one_cycle(2, 1e-2)
    assert same(weights(a), weights(c))

@pytest.mark.parametrize('name', ['cw-VR','ITRA-c','ManifoldMixup','LatentMonitor'])
def test_a_callback_of_a_learner_in_the_fit_of_another(name):
    cb = CALLBACKS[name][0]()
    a,b = new_learner(cbs=cb),new_learner()
    b.fit(1, 1e-3, cbs=cb)
    raises([type(cb).__name__, 'another learner'], lambda: a.fit(1, 1e-3))
    a.add_cb(cb); a.fit(1, 1e-3)
    assert cb.learn is a and not any('Moved' in type(c).__name__ for c in a.cbs)

@pytest.mark.parametrize('name', CALLBACKS)
def test_one_after_the_other(name):
    "One instance in the fits of several learners, one after the other"
    cb,res = CALLBACKS[name][0](),[]
    for _ in range(2):
        learn = learner_of(name)()
        learn.fit_one_cycle(2, 1e-2, cbs=cb)
        res.append(weights(learn))
    assert same(*res)
