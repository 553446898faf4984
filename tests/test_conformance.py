"The contracts of the design, for every callback of the collection. `pytest --all-faults tests/test_conformance.py` runs the whole fault grid."
import pytest
from torch.utils._python_dispatch import TorchDispatchMode
from fastai.callback.core import _events
from common import *

every = pytest.mark.parametrize('name', CALLBACKS)
penalties = pytest.mark.parametrize('name', PENALTIES)
of_a_classifier = pytest.mark.parametrize('name', OF_A_NET)
make = lambda name: CALLBACKS[name][0]()
off  = lambda name: CALLBACKS[name][1]()

@functools.lru_cache(maxsize=None)
def fitted(name=None, n=2, gan=False):
    "The weights after a fit of a new learner with the callback `name`"
    learn = (gan_learner if gan else learner_of(name))()
    learn.fit_one_cycle(n, 1e-2, cbs=name and make(name))
    return weights(learn)
def without(name): return fitted(gan=name in OF_A_GAN)

def test_every_callback_of_the_collection_is_here():
    import importlib, latentreg_fastai.callback, pkgutil
    methods = [m.name for m in pkgutil.iter_modules(latentreg_fastai.callback.__path__) if m.name not in ('core','terms','mixing','rows','resume')]   # the bases
    modules = [importlib.import_module(f'latentreg_fastai.callback.{m}') for m in methods]
    made = {type(make(n)).__name__ for n in CALLBACKS}
    there = {o.__name__ for m in modules for k in m.__all__ if isinstance(o := getattr(m, k), type) and issubclass(o, Callback)}
    assert there == made

@every
def test_it_does_something(name): assert same(without(name), fitted(name)) == (name in ONLY_WATCH)

@pytest.mark.parametrize('name', SOMETIMES)
def test_it_acts_in_some_batches_and_not_in_others(name):
    "In the fit that others are compared with: where it leaves a batch alone, its inputs are the loader's and its loss that of its own targets; where it acts, both are others"
    kept,acted,other_loss = [],[],[]
    def look(l):
        x,y = kept.pop()
        acted.append(not torch.equal(l.x, x))
        other_loss.append(abs(l.loss.item() - F.cross_entropy(l.pred, y).item()) > 1e-6)
    learn = learner_of(name)()
    learn.fit_one_cycle(2, 1e-2, cbs=[make(name), Probe(order=-9, run_valid=False, before_batch=lambda l: kept.append((l.x.clone(), l.y.clone()))), Probe(run_valid=False, after_loss=look)])
    assert acted == other_loss and {*acted} == {True,False} and len(acted) == 6
    assert same(weights(learn), fitted(name))

# Contracts 2 and 3: nothing is swapped, nothing leaks

FAULTS = [KeyboardInterrupt, RuntimeError, CancelBatchException, CancelBackwardException, CancelStepException, CancelTrainException,
          CancelValidException, CancelEpochException, CancelFitException]
EVENTS = [e for e in _events if e != 'after_create' and 'cancel' not in e] + ['after_cancel_batch']
GRID = [(n,f,e,late,own,order) for n in CALLBACKS for f in FAULTS for e in EVENTS for late in (0,1) for own in (0,1) for order in (-9,1000)]
SLICE = 29   # shares no factor with the sides of the grid, so the slice meets every value of each
assert all(SLICE % n for n in (len(CALLBACKS),len(FAULTS),len(EVENTS)))

class Fault(Callback):
    "Raises `exc` at `event`: at the first, or, but for `before_fit`, in the second epoch"
    def __init__(self, exc, event, late, order):
        self.exc,self.event,self.order,self.late,self.raised = exc,event,order,late,False
        object.__setattr__(self, event, self.fail)
        if event == 'after_cancel_batch': object.__setattr__(self, 'after_pred', self.cancel)
    def cancel(self): raise CancelBatchException
    def fail(self):
        later = {'before_fit': 0, 'before_epoch': 3, 'before_train': 3}.get(self.event, 4)   # batches trained on by then; there are three an epoch
        if self.raised or (self.late and getattr(self, 'train_iter', 0) < later): return
        object.__setattr__(self, 'raised', True)
        raise self.exc('fault')

def case_id(c): return f"{c[0]}-{c[1].__name__}-{c[2]}-{'later' if c[3] else 'first'}-{'learner' if c[4] else 'fit'}-{'after' if c[5] > 0 else 'before'}"

@pytest.mark.grid('case', GRID, every=SLICE, option='--all-faults', ids=case_id)
def test_an_error_anywhere_leaves_nothing(case):
    name,exc,event,late,own,order = case
    cb,learn = make(name),learner_of(name)()
    loss,model,loader = learn.loss_func,learn.model,learn.dls.train
    if own: learn.add_cb(cb)
    fault = Fault(exc, event, late, order)
    try: learn.fit_one_cycle(2, 1e-2, cbs=[fault] + ([] if own else [cb]))
    except (exc, *FAULTS[2:]): pass
    except AttributeError as e: assert 'in `Recorder`' in str(e)   # fastai's own, where an epoch was cancelled before it began
    assert fault.raised
    assert learn.loss_func is loss and learn.model is model and learn.dls.train is loader
    if not own: assert not hooks(learn.model) and cb.learn is None and not any(isinstance(c, (LayerCallback,TermRecorder)) for c in learn.cbs)
    # a pass through the model that is not the learner's own step is that of a network without hooks
    clean,x = learner_of(name)().model,data()[0]
    clean.load_state_dict(learn.model.state_dict())
    outs = []
    for m in [(m.critic if name in OF_A_GAN else m) for m in (learn.model, clean)]:
        m.train(); torch.manual_seed(5)
        outs.append(m(x))
    assert torch.equal(*outs)
    if own: learn.remove_cb(cb)
    assert not hooks(learn.model)
    # and the next fits, without the callback and with the same one, are those of a fresh learner
    restart(learn).fit_one_cycle(2, 1e-2)
    assert same(weights(learn), without(name))
    restart(learn).fit_one_cycle(2, 1e-2, cbs=cb)
    assert same(weights(learn), fitted(name))

@every
def test_on_the_learner_or_in_the_fit(name):
    learn = learner_of(name)(cbs=make(name))
    for _ in range(2):                                   # the same callback in two fits
        restart(learn).fit_one_cycle(2, 1e-2)
        assert same(weights(learn), fitted(name))
    assert not hooks(learn.model)

# Contract 4: only training is touched

@every
def test_validation_is_untouched(name):
    seen = []
    def compare(learn):
        if learn.training: return
        with no_random(): clean = learner_of(name)().model
        clean.load_state_dict(learn.model.state_dict()); clean.eval()
        if name in OF_A_GAN: clean.switch(learn.model.gen_mode)
        seen.append(torch.equal(clean(learn.x), learn.pred))
    learn = learner_of(name)(cbs=make(name))
    learn.fit(2, 1e-2, cbs=Probe(after_pred=compare))
    assert seen and all(seen)
    preds,_ = learn.get_preds()
    result = learn.validate()
    learn.remove_cbs(LayerCallback)
    assert torch.equal(preds, learn.get_preds()[0]) and list(learn.validate()) == list(result)

# Contract 5: off means off

@pytest.mark.parametrize('name', CAN_BE_OFF)
def test_off_is_no_callback(name):
    learn = learner_of(name)()
    learn.fit_one_cycle(2, 1e-2, cbs=off(name))
    assert same(weights(learn), without(name))

@penalties
def test_nothing_is_computed_while_the_weight_is_zero(name):
    cb,called = make(name),[]
    cb.weight = lambda pct: 0. if pct < .5 else 1.
    value = cb.value
    object.__setattr__(cb, 'value', lambda: called.append(cb.learn.epoch) or value())
    learn = learner_of(name)()
    learn.fit(2, 1e-2, cbs=cb)
    assert set(called) == {1} and len(called) == (1 if name in OF_A_GAN else 3)
    terms = learn.recorder.terms[cb.term_name]
    assert [math.isnan(t) for t in terms] == [True]*3 + ([True,False,True] if name in OF_A_GAN else [False]*3)   # a GAN's critic steps

@penalties
def test_a_schedule_is_followed(name):
    for sched in (SchedCos(0.,1.), combine_scheds([.5,.5], [SchedLin(0.,2.), SchedCos(2.,1.)])):
        cb,got,want = make(name),[],[]
        cb.weight = sched
        learn = learner_of(name)()
        def look(learn):
            if cb.term is None: return
            got.append(learn.loss_grad.item()); want.append((learn.loss + sched(learn.pct_train)*cb.term).item())
        learn.fit(2, 1e-2, cbs=[cb, Probe(after_loss=look, order=5, run_valid=False)])
        close(got, want, eps=1e-6)
        assert len(got) >= (2 if name in OF_A_GAN else 5 - getattr(cb, 'warmup', 0)*5)

# Contract 6: same seed, same batches

@every
def test_order_of_samples_and_global_random_state(name):
    seen = {}
    without_dropout = nn.Sequential(*[m for m in net() if not isinstance(m, nn.Dropout)]) if name in ADD_ROWS else None   # more rows draw more
    for n in (None, name):
        learn,batches = learner_of(name)(model=deepcopy(without_dropout)),[]
        learn.fit(2, 1e-2, cbs=[Probe(order=1.5, before_batch=lambda l: batches.append(l.x.clone()))] + L(n and make(n)))
        seen[n] = batches,random_state()
    assert all(torch.equal(a, b) for a,b in zip(seen[None][0], seen[name][0], strict=True)) and len(seen[None][0]) > 6   # validation too
    assert seen[None][1] == seen[name][1]

@every
def test_save_load_resume(name, tmp_path):
    learner_of(name)(path=tmp_path).fit_one_cycle(4, 1e-2, cbs=[make(name), TrainingSaver('run'), Cut()])
    learn = learner_of(name)(path=tmp_path, seed=7, **({'gen_first': True} if name in OF_A_GAN else {}))   # a GAN goes on with the generator
    set_seed(123)
    cb = make(name)
    learn.load_training('run', cbs=cb).fit_one_cycle(4, 1e-2, cbs=cb, start_epoch=2)
    assert same(weights(learn), fitted(name, 4))

# Contract 7: no loop over classes or samples, no wait for the device

class Ops(TorchDispatchMode):
    "Counts the operations of the training steps"
    def __init__(self): super().__init__(); self.counts = Counter()
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == 'index' and any(i is not None and i.dtype in (torch.bool,torch.uint8) for i in args[1]): name = 'index by mask'
        self.counts[name] += 1
        return func(*args, **(kwargs or {}))

def step_ops(name, n_classes=3, n=24, cb=True):
    "The operations of the second and later batches of an epoch"
    if name in OF_A_GAN: dls,model = tensor_dls((torch.randn(3*n, 4),data(3*n)[0]), (torch.randn(12, 4),data(12)[0]), bs=n, device='cpu'),None
    else:
        dls = tensor_dls(data(3*n, n_classes), data(12, n_classes, seed=1), bs=n, vocab=list(range(n_classes)), device='cpu')
        model = net(); model[-1] = nn.Linear(8, n_classes)
    learn,ops = learner_of(name)(dls=dls, model=model, seed=6 if name in SOMETIMES else 0),Ops()   # with 6 `VarMixup(p=.5)` acts in both
    def begin(learn):
        if learn.iter == 1: ops.__enter__()
    def end(learn):
        if learn.iter == 2: ops.__exit__(None, None, None)
    learn.fit(1, 1e-2, cbs=[make(name)]*cb + [Probe(order=-9, run_valid=False, before_batch=begin), Probe(run_valid=False, after_batch=end)])
    return ops.counts

WAITS = ('_local_scalar_dense','nonzero','masked_select','index by mask','_unique2','unique_dim','item','is_nonzero','equal')

@every
def test_no_step_waits_for_the_device(name):
    base,mine = step_ops(name, cb=False),step_ops(name)
    assert mine != base or name in ONLY_SET              # it acts in these steps
    assert {k: mine[k] for k in WAITS} == {k: base[k] for k in WAITS}

@every
def test_work_does_not_grow_with_classes_or_samples(name):
    ops = lambda *args: sum(step_ops(name, *args).values()) - sum(step_ops(name, *args, cb=False).values())
    if name in DRAW_LAYER: few,many = sorted([ops(3, 24), ops(20, 60)]); assert few > 0 and many < few + 12
    else: assert ops(3, 24) == ops(20, 60) >= (name not in ONLY_SET)

# Contract 8: float32 or better

class Autocast(Callback):
    "bfloat16 on a CPU at the events where fastai's `MixedPrecision`, which is for CUDA only, enters and leaves"
    order = MixedPrecision.order
    def before_batch(self): self.ctx = torch.autocast('cpu', torch.bfloat16); self.ctx.__enter__()
    def after_pred(self): self.learn.pred = to_float(self.pred)
    def after_loss(self): self.ctx.__exit__(None, None, None)

@every
def test_bf16_autocast(name):
    cb,learn,seen = make(name),learner_of(name)(),[]
    linear = learn.model.critic[-1] if name in OF_A_GAN else learn.model[4][0]
    h = linear.register_forward_hook(lambda m,i,o: seen.append(o.dtype) if learn.training else None)
    terms = Probe(after_loss=lambda l: cb.term is not None and seen.append(cb.term.dtype), order=11, run_valid=False)
    learn.fit(2, 1e-2, cbs=[cb, Autocast()] + [terms]*isinstance(cb, TermCallback))
    h.remove()
    assert torch.bfloat16 in seen and set(seen) <= {torch.bfloat16, torch.float32}
    assert all(v.isfinite().all() for v in weights(learn).values())
    if isinstance(cb, TermCallback): assert torch.float32 in seen and all(map(math.isfinite, learn.recorder.terms[cb.term_name][3:][1 if name in OF_A_GAN else 0::2]))

@of_a_classifier                                         # fastai's `GANTrainer` adds float32 to its losses
def test_float64_stays(name):
    learn,seen = learner_of(name)(),[]
    learn.model.double()
    for dl in learn.dls.loaders: dl.dataset.tensors = tuple(t.double() if t.is_floating_point() else t for t in dl.dataset.tensors)
    cb = make(name)
    own = lambda l: cb.term if isinstance(cb, WeightedTerm) and cb.term is not None else l.pred   # the loss itself is cast by fastai
    learn.fit(1, 1e-2, cbs=[cb, Probe(run_valid=False, after_loss=lambda l: seen.append(own(l).dtype))])
    assert set(seen) == {torch.float64}

# Contract 11: what is added is visible

@every
def test_columns(name):
    cb,rows = make(name),[]
    learn = learner_of(name)()
    plain = learn.validate()
    learn.add_cb(cb)
    assert list(learn.validate()) == list(plain)
    learn.logger = lambda row: rows.append(list(row))
    learn.fit(2, 1e-2)
    names,values = learn.recorder.metric_names,learn.recorder.values
    usual = ['epoch','train_loss','valid_loss',*(['gen_loss','crit_loss'] if name in OF_A_GAN else ['accuracy'])]
    assert names[:len(usual)] == usual and names[-1] == 'time'
    assert all(len(r) == len(names) for r in rows) and all(len(v) == len(names)-2 for v in values)
    mine = [c.term_name for c in learn.cbs if isinstance(c, TermCallback)]
    assert list(names[len(usual):-1]) == mine and len(mine) == (2 if name in ONLY_WATCH else isinstance(cb, TermCallback))
    for i,term in enumerate(mine, len(usual)-1):
        terms = learn.recorder.terms[term]
        assert len(terms) == len(learn.recorder.losses) == 6
        close([v[i] for v in values], [np.nanmean(terms[:3]), np.nanmean(terms[3:])], eps=1e-5)
    assert len(learn.validate()) == len(plain)

@every
def test_two_of_a_kind(name):
    a,b,learn = make(name),make(name),learner_of(name)()
    learn.add_cbs([a,b])
    assert a.name != b.name and getattr(learn, a.name) is a and getattr(learn, b.name) is b
    if name in ADD_ROWS:
        with pytest.raises(ValueError, match='adds rows to the batch too'): learn.fit(1, 1e-2)
    elif isinstance(a, TermCallback):
        learn.fit(1, 1e-2)
        assert a.term_name != b.term_name
        one,two = (learn.recorder.terms[c.term_name] for c in (a,b))
        if name not in OF_A_GAN: close(one, two)           # whose mixtures are drawn by each
    learn.remove_cbs([a,b])
    assert not any(isinstance(c, (LayerCallback,TermRecorder)) for c in learn.cbs) and not hasattr(learn, a.name)

# Beside fastai's own

@every
def test_lr_find(name):
    "A suggestion is made with the callback, and leaves no trace: neither in the learner nor in the fit after it"
    learn = learner_of(name)(cbs=make(name))
    before = weights(learn)
    with tempfile.TemporaryDirectory() as d:
        learn.path = Path(d)
        assert 1e-7 < learn.lr_find(num_it=20, show_plot=False).valley < 10
    assert same(weights(learn), before) and not hooks(learn.model)
    restart(learn).fit_one_cycle(2, 1e-2)
    assert same(weights(learn), fitted(name))

@of_a_classifier                                         # fastai cannot export a GAN's optimizer
def test_export_and_load_learner(name, tmp_path):
    learn = learner_of(name)(cbs=make(name), path=tmp_path)
    learn.fit(1, 1e-2)
    preds,_ = learn.get_preds()
    learn.export('m.pkl')
    loaded = load_learner(tmp_path/'m.pkl')
    dl = learn.dls.valid
    assert torch.equal(loaded.get_preds(dl=dl)[0], preds)
    assert any(isinstance(c, type(make(name))) for c in loaded.cbs)
    loaded.dls,loaded.opt = learn.dls,None              # the callback goes on working in the loaded learner
    if hasattr(loaded, 'semi_supervised_mixup'): loaded.semi_supervised_mixup.unlabeled = UNLABELED   # an export holds no data
    restart(loaded).fit_one_cycle(2, 1e-2)
    assert same(weights(loaded), fitted(name))

@of_a_classifier
def test_gradient_accumulation(name):
    "The term is divided with the loss: the gradient of a step is the mean over its batches of the gradient of what each batch's loss was"
    learn,parts,got = learner_of(name)(),[],[]
    params = list(learn.model.parameters())
    grad = lambda l: parts.append([torch.zeros_like(p) if g is None else g for p,g in zip(params, torch.autograd.grad(l.loss_grad, params, retain_graph=True, allow_unused=True))])
    step = lambda l: got.append([p.grad.clone() for p in params])
    probes = [Probe(order=5, run_valid=False, after_loss=grad), Probe(order=6.5, run_valid=False, before_step=step)]
    learn.fit(2, 1e-2, cbs=[make(name), GradientAccumulation(n_acc=24), *probes])
    assert len(parts) == 6 and len(got) == 2
    for i,mine in enumerate(got):
        for gs in zip(mine, *parts[3*i:3*i+3]): torch.testing.assert_close(gs[0], sum(gs[1:])/3, rtol=1e-4, atol=1e-6)

@every
def test_gradient_clip(name):
    learn,norms = learner_of(name)(),[]
    norm = lambda l: norms.append(torch.stack([p.grad.norm() for p in l.model.parameters() if p.grad is not None]).norm().item())
    learn.fit(1, 1e-2, cbs=[make(name), GradientClip(.01), Probe(run_valid=False, before_step=norm)])
    assert len(norms) == 3 and max(norms) <= .0101

@every
def test_channels_last(name):
    learn = learner_of(name)()
    learn.fit_one_cycle(2, 1e-2, cbs=[make(name), ChannelsLast()])
    for k,v in weights(learn).items(): torch.testing.assert_close(v, fitted(name)[k], rtol=1e-2, atol=1e-3)

@pytest.mark.parametrize('name', sorted({*PENALTIES, *ADD_ROWS} - {*OF_A_GAN}))
def test_beside_mixup(name):
    learn = learner_of(name)()
    loss = learn.loss_func
    if name in ADD_ROWS:
        for mixer in (MixUp,ManifoldMixup):
            with pytest.raises(ValueError, match=f'{mixer.__name__} would mix rows'): learn.fit(2, 1e-2, cbs=[mixer(), make(name)])
        return
    learn.fit(2, 1e-2, cbs=[MixUp(), make(name)])
    assert learn.loss_func is loss and all(map(math.isfinite, first(learn.recorder.terms.values())))

@every
def test_two_callbacks_together(name):
    "Each adds what it would: the terms of both are there, in whatever order they were given"
    res = []
    for flip in (False,True):
        learn,cbs = learner_of(name)(),[make(name), WeightL1(.5) if name in OF_A_GAN else ActivationL1(.5, layer='2')]
        learn.fit_one_cycle(2, 1e-2, cbs=cbs[::-1] if flip else cbs)
        assert not hooks(learn.model)
        res.append(weights(learn))
    assert not same(res[0], fitted(name))
    for k in res[0]: torch.testing.assert_close(res[0][k], res[1][k], rtol=1e-3, atol=1e-5)

@every
def test_activation_checkpointing(name):
    "The layers are run again in the backward pass, and must be mixed again"
    if name == 'DropoutRate': pytest.skip('it needs dropout, see test_settings')
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            for m in self: x = torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False) if self.training else m(x)
            return x
    res = []
    for cls in (nn.Sequential,Checkpointed):
        set_seed(3)
        model = cls(*[m for m in (gan_net()[1] if name in OF_A_GAN else net()) if not isinstance(m, nn.Dropout)])
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d): m.momentum = 0.   # running statistics would be updated twice
        learn = learner_of(name)(model=(Generator(),model) if name in OF_A_GAN else model)
        learn.fit(2, 1e-2, cbs=make(name))
        res.append(weights(learn))
    for k in res[0]:
        if 'num_batches' not in k: torch.testing.assert_close(res[0][k], res[1][k], rtol=1e-4, atol=1e-6)

@of_a_classifier
def test_data_parallel_is_refused(name):
    learn = learner_of(name)(model=nn.DataParallel(net()))
    with pytest.raises(ValueError, match='DataParallel'): learn.fit(1, 1e-2, cbs=make(name))
