"Terms, layers and labels of callbacks: what `LatentCallback`, `WeightedTerm` and `ClasswiseCallback` do for every penalty."
import pytest
from common import *

def test_a_layer_with_several_outputs():
    "The first tensor of what an LSTM returns is taken, and replaced"
    class Rnn(nn.Module):
        def __init__(self): super().__init__(); self.rnn,self.fc = nn.LSTM(8,5,batch_first=True),nn.Linear(5,3)
        def forward(self, x): return self.fc(self.rnn(x.squeeze(1))[0][:,-1])
    learn,mix,cb,seen = new_learner(model=Rnn()),ManifoldMixup(layers='rnn', input_mixup=False),VarianceRegularizer(layer='rnn', classwise=False),[]
    def look(l):
        z = l.model.rnn(l.x.squeeze(1))[0]
        seen.append((l.pred, l.model.fc(mixed(z, mix.lam, mix.shift)[:,-1]), cb.term, variance_penalty(z), variance_penalty(mixed(z, mix.lam, mix.shift))))
    learn.fit(1, cbs=[cb, mix, Probe(after_loss=look, run_valid=False)])
    assert len(seen) == 3
    for pred,of_mixed,term,plain_,mixed_ in seen: torch.testing.assert_close((pred,term), (of_mixed,mixed_), rtol=1e-4, atol=1e-6)

def test_a_layer_that_is_passed_twice():
    "Its penalty is the mean over the passes"
    class Siamese(nn.Module):
        def __init__(self): super().__init__(); self.enc,self.fc = nn.Sequential(nn.Flatten(), nn.Linear(64,5)),nn.Linear(5,3)
        def forward(self, x): return self.fc(self.enc(x) - self.enc(2*x))
    learn,want,got = new_learner(model=Siamese()),[],[]
    def look(l):
        with torch.no_grad(): want.append(torch.stack([variance_penalty(l.model.enc(k*l.x)) for k in (1,2)]).mean())
        got.append(cb.term)
    learn.fit(1, cbs=[cb := VarianceRegularizer(layer='enc', classwise=False), Probe(after_loss=look, run_valid=False)])
    torch.testing.assert_close(got, want); assert len(got) == 3

def test_a_penalty_without_a_penalty():
    class Nothing(LatentCallback): pass
    raises(['Nothing needs a method `penalty'], lambda: new_learner().fit(1, cbs=Nothing()), NotImplementedError)

# Labels from elsewhere: `labels=`, and the number of classes

def image_learner(cbs=None, labels_at=1, **kwargs):
    x,y = data()
    order = ((x,x,y),(x,y,x)) [labels_at != 1]
    ds = TensorItems(*order); ds.n_inp = 1
    dls = DataLoaders(TensorDL(ds, bs=8, shuffle=True), TensorDL(ds, bs=8), device='cpu')
    loss = (lambda p,a,b: F.mse_loss(p, a)) if labels_at == 1 else (lambda p,a,b: F.mse_loss(p, b))
    return new_learner(cbs, dls=dls, model=Autoencoder((1,8,8), (16,8,4,8,16)), loss_func=loss, metrics=[], **kwargs)

CLASSWISE = {'cw-VR': (VarianceRegularizer, lambda z,y: sum(z[y == k].var(0, unbiased=False).mean() for k in range(3) if (y == k).any())/3),
             'cw-CR': (CovarianceRegularizer, lambda z,y: sum(c.square()[torch.triu_indices(len(c), len(c), 1).unbind()].mean() for k in range(3) if (y == k).any() for c in [torch.cov(z[y == k].T, correction=0)])/3)}
@pytest.mark.parametrize('name', CLASSWISE)
@pytest.mark.parametrize('where', ['position','negative','function','first'])
def test_labels_of_an_autoencoder(name, where):
    "The penalty of the third layer, by class, with the labels that lie behind the image"
    cls,want = CLASSWISE[name]
    labels = {'position': 1, 'negative': -1, 'function': lambda learn: learn.yb[1], 'first': 0}[where]
    learn,seen = image_learner(labels_at=0 if where == 'first' else 1),[]
    cb = cls(1., layer='3', labels=labels, n_classes=3)
    def look(l):
        z = l.model.encode(l.x)
        y = l.yb[0 if where == 'first' else 1]
        close(cb.term.item(), want(z, y).item(), eps=1e-5); seen.append(l.loss.item())
        close(l.loss_grad.item(), l.loss.item() + cb.term.item(), eps=1e-5)
    learn.fit(2, 1e-3, cbs=[cb, Probe(order=5, run_valid=False, after_loss=look)])
    assert len(seen) == 6

@pytest.mark.parametrize('make', [lambda **kw: ITRA(warmup=0., **kw), lambda **kw: ITRA(source='split', warmup=0., **kw), lambda **kw: ITRA(source='queue', warmup=0., **kw), lambda **kw: CenterLoss(**kw), lambda **kw: VarianceRegularizer(**kw)], ids=['ITRA','ITRA split','ITRA queue','CenterLoss','cw-VR'])
def test_labels_elsewhere_are_the_labels(make):
    "Labels as the second target train as the same labels as the first, with a loss that takes both"
    res = []
    x,y = data()
    for swap in (False,True):
        ds = TensorItems(x, *((x,y) if swap else (y,x))); ds.n_inp = 1
        dls = DataLoaders(TensorDL(ds, bs=8, shuffle=True), TensorDL(ds, bs=8), device='cpu')
        loss = (lambda p,a,b: F.cross_entropy(p, b)) if swap else (lambda p,a,b: F.cross_entropy(p, a))
        learn = new_learner(dls=dls, loss_func=loss, metrics=[])
        for dl in learn.dls.loaders: dl.rng.seed(3)
        learn.fit(2, 1e-2, cbs=make(n_classes=3, **({'labels': 1} if swap else {})))
        res.append(weights(learn))
    assert same(*res)

@pytest.mark.parametrize('labels,match,exc', [(2, ['labels=2', '2 targets', '0 to 1'], IndexError), (-3, ['labels=-3'], IndexError), (0, ['one integer label a sample', 'float32', '(8, 1, 8, 8)'], TypeError),
    (lambda l: l.yb[1][:5], ['rows for', 'labels'], ValueError), (lambda l: None, ['NoneType'], TypeError), (lambda l: l.yb[1].float(), ['float32'], TypeError)], ids=['beyond','below','image','few','none','floats'])
@pytest.mark.parametrize('cls', [VarianceRegularizer,CovarianceRegularizer,lambda *a, **k: ITRA(*a, warmup=0., **k)], ids=['VR','CR','ITRA'])
def test_labels_that_do_not_line_up(cls, labels, match, exc):
    learn = image_learner()
    before = weights(learn)
    cb = cls(1., layer='3', labels=labels, n_classes=3)
    raises([type(cb).__name__, *match], lambda: learn.fit(1, 1e-3, cbs=cb), exc)
    assert same(weights(learn), before) and not hooks(learn.model)

def test_labels_of_a_wrong_kind():
    for bad in ('y', 1.5, [0], True): raises(['VarianceRegularizer', '`labels`', repr(bad)], lambda: VarianceRegularizer(labels=bad), TypeError)
    raises(['VarianceRegularizer', 'number of classes', '`n_classes`'], lambda: image_learner().fit(1, cbs=VarianceRegularizer(layer='3', labels=1)))
    raises(['labels run from 0 to 2', '2 classes'], lambda: image_learner().fit(1, 1e-3, cbs=VarianceRegularizer(layer='3', labels=1, n_classes=2)))
    image_learner().fit(1, 1e-3, cbs=VarianceRegularizer(layer='3', classwise=False))      # without classes no labels are needed

# What a subclass can forget

def first_batch(cb, **kwargs): return lambda: new_learner(**kwargs).fit(1, 1e-3, cbs=cb)

@pytest.mark.parametrize('returns,said', [(lambda z: None, ['None', '`return`']), (lambda z: .5, ['0.5']), (lambda z: z.mean(0), ['shape (8,)']), (lambda z: 'x', ["'x'"])], ids=['nothing','a float','a vector','text'])
@pytest.mark.parametrize('of', ['penalty','value'])
def test_what_is_no_scalar_is_refused(of, returns, said):
    "In the first batch, before a step is taken"
    class Mine(LatentCallback if of == 'penalty' else WeightedTerm):
        def penalty(self, z, *yb): return returns(z)
        if of == 'value':
            def value(self): return returns(torch.ones(2, 8))
    learn = new_learner()
    before = [p.detach().clone() for p in learn.model.parameters()]
    raises(['Mine', f'`{of}` must return a scalar tensor', *said], lambda: learn.fit(1, 1e-3, cbs=Mine()), TypeError)
    assert all(map(torch.equal, learn.model.parameters(), before)) and not hooks(learn.model)

def test_a_number_of_one_dimension_is_a_scalar():
    class Flat(LatentCallback):
        def penalty(self, z, *yb): return z.square().mean()[None]
    class Plain(LatentCallback):
        def penalty(self, z, *yb): return z.square().mean()
    res = []
    for cls in (Flat,Plain):
        learn = new_learner()
        learn.fit(1, 1e-2, cbs=cls())
        res.append(weights(learn))
    assert same(*res)

@pytest.mark.parametrize('base,method', [(WeightedTerm,'value'), (LatentCallback,'penalty'), (MoreRows,'find_rows')], ids=lambda o: getattr(o, '__name__', o))
def test_a_method_that_is_missing(base, method):
    Mine = type('Mine', (base,), {})
    cb = Mine() if base is not MoreRows else None
    if cb is None:
        class Owner(WeightedTerm):
            def companions(self): return [Mine(self, 'take one of the two')]
            def value(self): return self.pred.sum()
        cb = Owner()
    raises(['Mine', f'`{method}(self' if method != 'find_rows' else 'find_rows(self, total)'], first_batch(cb), NotImplementedError)

@pytest.mark.parametrize('event', ['before_fit','before_train','setup','before_backward','after_backward','after_batch','after_train','after_epoch','after_fit'])
def test_an_event_without_super_is_refused(event):
    "When the class is defined: the base class would do nothing"
    with pytest.raises(TypeError, match=rf'Forgets\.{event} must call super\(\)\.{event}\(\)'): type('Forgets', (LatentCallback,), {event: lambda self: None})
    class Calls(LatentCallback): pass
    exec(f'def {event}(self): super(Calls, self).{event}()', dict(Calls=Calls), made := {})
    type('Sub', (Calls,), made)                           # one that does is taken

def test_events_and_begin_of_a_weighted_term():
    for event in ('before_batch','after_loss','begin'):
        with pytest.raises(TypeError, match=event): type('Forgets', (LatentCallback,), {event: lambda self: None})
    type('Fine', (LayerCallback,), {e: lambda self: None for e in ('before_batch','after_pred','after_loss','after_step')})   # the base has none

class NoSuper(LatentCallback):
    def __init__(self, weight=1.): self.mine = weight
    def penalty(self, z, *yb): return z.square().mean()
class HalfSuper(ClasswiseCallback):
    def __init__(self, weight=1.): self.weight,self.layer = weight,None
    def penalty(self, z, y): return z.square().mean()
class MixNoSuper(LayerMixing):
    def __init__(self, layers=None): store_attr()

@pytest.mark.parametrize('cls,lacks', [(NoSuper,'`layer`'), (HalfSuper,'`classwise`'), (MixNoSuper,'`eligible`')], ids=lambda o: getattr(o, '__name__', ''))
def test_a_constructor_without_super(cls, lacks):
    "What it was given would be of no effect"
    raises([cls.__name__, lacks, 'super().__init__'], first_batch(cls()), TypeError)

def test_a_weight_that_was_set_past_the_constructor():
    class Mine(LatentCallback):
        def __init__(self): super().__init__(); self.weight = -1.
        def penalty(self, z, *yb): return z.square().mean()
    raises(['Mine', '`weight`', '-1'], first_batch(Mine()))

@pytest.mark.parametrize('forget', ['mixin','partial','instance','patch'])
def test_other_ways_to_leave_out_super(forget):
    class Mix:
        def before_batch(self): pass
    class Base(LatentCallback):
        def penalty(self, z, *yb): return z.square().mean()
    if forget in ('mixin','partial'):
        with pytest.raises(TypeError, match=r'Mine\.before_batch must call super'):
            if forget == 'mixin': type('Mine', (Mix,Base), {})
            else: type('Mine', (Base,), dict(before_batch=partial(print)))
        return
    cb = type('Mine', (Base,), {})()
    if forget == 'instance': cb.before_batch = lambda: None
    else: setattr(type(cb), 'before_batch', lambda self: None)
    raises(['Mine', 'before_batch', 'super()'], first_batch(cb), TypeError)

def test_a_decorated_event_that_calls_super():
    def twice(f):
        @functools.wraps(f)
        def _inner(self): return f(self)
        return _inner
    class Mine(LatentCallback):
        @torch.no_grad()
        def after_batch(self): super().after_batch()
        @twice
        def after_train(self): super().after_train()
        def penalty(self, z, *yb): return z.square().mean()
    first_batch(Mine())()

@pytest.mark.parametrize('penalty', [lambda z: torch.tensor(float(z.square().mean())), lambda z: z.detach().std(), lambda z: (z > 0).sum()], ids=['item','detach','count'])
def test_a_penalty_that_is_cut_off(penalty):
    class Mine(LatentCallback):
        def penalty(self, z, *yb): return penalty(z)
    raises(['Mine', '`penalty`'], first_batch(Mine()), TypeError)

@pytest.mark.parametrize('attr,match', [(dict(column=lambda self: 'x'), '`column`'), (dict(is_on=lambda self: True), '`is_on`'), (dict(companions=lambda self: None), '`companions`'),
                                        (dict(companions=lambda self: Callback()), '`companions`')], ids=['column','is_on','no companions','one companion'])
def test_a_wrong_form(attr, match):
    cb = type('Mine', (LatentCallback,), dict(penalty=lambda self, z, *yb: z.square().mean(), **attr))()
    raises(['Mine', match], first_batch(cb), TypeError)

def test_is_on_switches_off():
    class Mine(LatentCallback):
        is_on = False
        def penalty(self, z, *yb): raise RuntimeError
    first_batch(Mine())()

@pytest.mark.parametrize('base,name', [(LatentCallback,'site'), (LatentCallback,'term'), (LatentCallback,'weight_now'), (ClasswiseCallback,'K'), (LayerMixing,'lam'), (LayerMixing,'shift')], ids=lambda o: getattr(o, '__name__', o))
def test_names_of_the_base(base, name):
    cb = type('Mine', (base,), dict(penalty=lambda self, z, *yb: z.square().mean()))()
    setattr(cb, name, 3)
    raises(['Mine', f'`{name}`', 'another name'], first_batch(cb), TypeError)
    cb = VarianceRegularizer()                            # those that a fit has set are the base's own
    for _ in range(2): new_learner().fit(1, 1e-3, cbs=cb)

@pytest.mark.parametrize('bases', [(LayerMixing,WeightedTerm), (WeightedTerm,LayerMixing), (LayerMixing,LatentCallback)], ids=str)
def test_a_mixing_term_needs_events_of_its_own(bases):
    def init(self):
        for b in bases: b.__init__(self)
    cb = type('Mine', bases, dict(__init__=init, value=lambda self: self.pred.sum(), penalty=lambda self, z, *yb: z.sum()))()
    raises(['Mine', 'both mixes and adds a term'], first_batch(cb), TypeError)

def test_what_is_watched_may_change_from_batch_to_batch():
    "Both the function and the places"
    used,given = [],[]
    class Mine(LayerCallback):
        def before_batch(self):
            given.append((self.iter, ('2','4','2')[self.iter]))
            self.watch(self.find_sites(given[-1][1]), partial(self.note, self.iter))
        def note(self, i, site, z): used.append((i, str(site)))
    first_batch(Mine())()
    assert used == given and len(used) == 3

class Momentum(LatentCallback):
    "Has a state that it forgets at the start of a fit, as the tutorial says"
    def reset(self): self.mean = None
    def penalty(self, z, *yb):
        m = z.mean(0)
        self.mean = m.detach() if self.mean is None else .9*self.mean + .1*m.detach()
        return (m - self.mean).square().sum() + m.square().sum()
    def state_dict(self): return dict(mean=self.mean)
    def load_state_dict(self, state): self.mean = state['mean']

def test_a_state_of_ones_own_is_resumed(tmp_path):
    whole = new_learner(path=tmp_path)
    whole.fit_one_cycle(4, 1e-2, cbs=[Momentum(5.), TrainingSaver('run'), Cut()])
    assert whole.epoch == 2
    resumed = new_learner(path=tmp_path, seed=7)
    cb = Momentum(5.)
    resumed.load_training('run', cbs=cb)
    resumed.fit_one_cycle(4, 1e-2, cbs=cb, start_epoch=2)
    straight = new_learner()
    straight.fit_one_cycle(4, 1e-2, cbs=Momentum(5.))
    assert same(weights(resumed), weights(straight))
    mixed_in = type('Momentum', (type('State', (), {k: vars(Momentum)[k] for k in ('state_dict','load_state_dict')}),LatentCallback), {k: vars(Momentum)[k] for k in ('reset','penalty')})
    resumed = new_learner(path=tmp_path, seed=7)          # nor does it matter where the methods come from
    resumed.load_training('run', cbs=(cb := mixed_in(5.)))
    resumed.fit_one_cycle(4, 1e-2, cbs=cb, start_epoch=2)
    assert same(weights(resumed), weights(straight))
    forgets = new_learner(path=tmp_path, seed=7)          # without its state it comes out otherwise
    forgets.load_training('run', cbs=(cb := Momentum(5.)))
    cb._restored = False
    forgets.fit_one_cycle(4, 1e-2, cbs=cb, start_epoch=2)
    assert not same(weights(forgets), weights(straight))

def test_an_attribute_that_shadows_the_learners():
    class Shadows(LatentCallback):
        def before_batch(self): super().before_batch(); self.opt = 3
        def penalty(self, z, *yb): return z.square().mean()
    with pytest.warns(UserWarning, match=r'`opt` shadows.*self\.learn\.opt'): first_batch(Shadows())()

# The hooks

def test_hooks_act_in_their_batch_alone():
    seen,net = [],nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    x,other = torch.randn(4, 2),torch.randn(4, 2)
    h,sites = BatchHooks(),[Site('0', net[0]),Site('1', net[1])]
    f = lambda site,z: seen.append(str(site))
    assert h.arm(net, sites, f, lambda t: t is x) and not h.reached
    net(other); assert seen == []
    net(x); assert seen == ['0','1'] and h.reached and not h.acting
    assert not h.arm(net, sites, f, lambda t: t is x, only=sites[1]) and not h.reached   # made already
    net(x); assert seen == ['0','1','1']
    h.rest(); net(x); assert seen == ['0','1','1']
    with h.now(): net(other); net[0](other)
    assert seen == ['0','1','1','1'] and not h.acting      # `only` still holds
    h.close(); assert not hooks(net) and not h.handles

def test_now_ends_with_an_error():
    net,h,seen = nn.Sequential(nn.Linear(2, 3)),BatchHooks(),[]
    h.arm(net, [Site('0', net[0])], lambda site,z: seen.append(1), lambda t: False)
    with pytest.raises(RuntimeError):
        with h.now(): net(torch.randn(4, 9))
    net(torch.randn(4, 2))
    assert seen == []

def test_nothing_of_a_batch_is_kept():
    "Between batches, after a fit and after an error, neither predictions nor other rows stay in memory"
    class Fails(Callback):
        def after_loss(self): raise RuntimeError('fault')
    for cbs in ([], [Fails()]):
        for name in ('Phantom','ITRA-c','SemiSupervised','ManifoldMixup'):
            learn,cb = new_learner(),CALLBACKS[name][0]()
            try: learn.fit(1, 1e-3, cbs=[cb, *cbs])
            except RuntimeError: assert cbs
            for c in (cb, getattr(cb, 'rows', cb)): assert c.batch_state or c is cb; assert all(getattr(c, k) is None for k in c.batch_state)

# Arguments

@pytest.mark.parametrize('check,good,bad', [
    (partial(check_number, 'f', 'x'), (0, 1.5, np.float32(2), np.int64(3)), (-1, NAN, math.inf, True, np.bool_(True), '1', None)),
    (partial(check_number, 'f', 'x', above=True), (1e-9, 3), (0, -1)),
    (partial(check_whole, 'f', 'x'), (1, np.int64(2), np.uint8(3)), (0, 1., True, np.bool_(True), '1', None)),
    (partial(check_whole, 'f', 'x', low=0), (0, 5), (-1,)),
    (partial(check_share, 'f', 'x'), (0, 1, .5, np.float64(.2)), (-.1, 1.1, NAN, True, 'x', None)),
    (partial(check_share, 'f', 'x', above=True), (1, .1), (0,)), (partial(check_share, 'f', 'x', below_one=True), (0, .9), (1,)),
    (partial(check_choice, 'f', 'x', choices=('a','b','c')), ('a','c'), ('d', None))], ids=['number','number above','whole','whole from 0','share','share above','share below','choice'])
def test_argument_checks(check, good, bad):
    for v in good: assert check(v) == v
    for v in bad: assert raises(['f: `x`', repr(v)], lambda: check(v))
    if check.func is check_whole: assert type(check(np.int64(7))) is int

def test_an_attribute_called_n_is_a_users_own():
    "What marks a callback that adds rows has a name that no one takes by chance"
    class Mine(LatentCallback):
        def __init__(self): super().__init__(); self.n = 2
        def penalty(self, z, *yb): rows.append(len(z)); return z.square().mean()
    rows = []
    new_learner().fit(1, 1e-3, cbs=[Mine(), VarianceRegularizer()])
    assert rows == [8]*3

@pytest.mark.parametrize('warmup', [1, 3, -.1])
def test_a_warmup_that_never_ends_is_refused(warmup):
    class Mine(LatentCallback):
        def penalty(self, z, *yb): return z.square().mean()
    cb = Mine()
    cb.warmup = warmup
    raises(['Mine', '`warmup`', repr(warmup)], first_batch(cb))

@pytest.mark.parametrize('name', CALLBACKS)
def test_few_levels_above_a_callback(name):
    "At most five classes between `Callback` and a method"
    def depth(c): return 0 if c is Callback else 1 + max(depth(b) for b in c.__bases__ if issubclass(b, Callback))
    assert 1 <= depth(type(CALLBACKS[name][0]())) - 1 <= 5

# Terms and weights that cease to be finite

def vast_learner(scale, bs=8, **kwargs):
    (x,y),(vx,vy) = data(),data(12, seed=1)
    return new_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)), dls=tensor_dls((x*scale,y), (vx,vy), bs=bs, device='cpu'), opt_func=SGD, metrics=[], **kwargs)

class Squares(LatentCallback):
    def penalty(self, z, *yb): return z.square().mean()
class Steep(LatentCallback):
    "Small and finite, with a gradient that is not"
    def penalty(self, z, *yb): return (z - z.detach()).square().sum().sqrt() + 5
ENDS = {'value': (lambda: Squares(), 1e20, 'the term squares_loss was not finite'), 'gradient': (lambda: Squares(1e6), 5e17, 'the weights are no longer finite'), 'gradient alone': (lambda: Steep(), 1., 'the weights are no longer finite'),
        'of the library': (lambda: VarianceRegularizer(classwise=False), 1e20, 'not finite')}

@pytest.mark.parametrize('name', ENDS)
@pytest.mark.parametrize('bs', [8,24])
def test_a_term_that_breaks_the_weights_is_told(name, bs):
    "At the end of the epoch, whether batches follow or not; the learner is as it was, and the same network trains without the term"
    make,scale,what = ENDS[name]
    learn = vast_learner(scale, bs)
    msg = raises([type(make()).__name__, what], lambda: learn.fit(1, 1e-25, cbs=make()))
    if 'weights' in what: assert 'beside a loss of' in msg
    assert not hooks(learn.model) and not any(isinstance(cb, (LayerCallback,TermRecorder)) for cb in learn.cbs)
    plain = vast_learner(scale, bs)
    plain.fit(1, 1e-25)
    assert all(p.isfinite().all() for p in plain.model.parameters())

def test_a_loss_that_breaks_by_itself_is_left_to_fastai():
    learn = vast_learner(1., loss_func=lambda p,y: F.cross_entropy(p, y)*1e38*(1e38 if learn.training and learn.iter else 1.))
    learn.fit(1, 1e-2, cbs=Squares(1e-3))                 # far below the loss
    assert not all(p.isfinite().all() for p in learn.model.parameters())

def test_a_term_above_the_loss_is_no_fault():
    "And a batch whose loss is not finite, but whose step is skipped, is none either"
    class Skipped(Callback):
        run_valid = False
        def before_batch(self):
            if self.iter == 1: self.learn.xb = (self.x*math.inf,)
        def before_step(self):
            if self.iter == 1: raise CancelStepException
    for cbs in ([], [Skipped()]):
        learn = vast_learner(1.)
        learn.fit(1, 1e-3, cbs=[Squares(100.), *cbs])
        assert 100*learn.recorder.terms['squares_loss'][0] > 2*learn.recorder.losses[0] and all(p.isfinite().all() for p in learn.model.parameters())

class Mirror(LatentCallback):
    finite = False
    def penalty(self, z, *yb): return z.sum()/0
def test_a_term_may_say_that_it_need_not_be_finite():
    learn = vast_learner(1.)
    learn.fit(1, 1e-2, cbs=Mirror())
    assert not np.isfinite(learn.recorder.terms['mirror_loss']).any()
