"Attacks, deformations and corruptions against loops, torchvision, scipy and colorsys; what `robustness` measures, and that the learner does not notice."
import colorsys, contextlib, pytest
import torchvision.transforms.v2.functional as TF
from scipy import ndimage, stats as st
from torchvision.io import decode_jpeg, encode_jpeg
from common import *
import latentreg_fastai.robustness as R

plt.switch_backend('agg')
assert_close,assert_table = torch.testing.assert_close,pd.testing.assert_frame_equal
FAST = dict(steps=3, unbounded=dict(steps=3))                                          # of PGD, where its strength does not matter
def gen(seed=0): return torch.Generator().manual_seed(seed)

def learner(dls, model, lr=None, epochs=10):
    learn = new_learner(model=model, dls=dls)
    if lr: learn.fit_one_cycle(epochs, lr)
    return learn

def real(n_channels=1, n=60):
    "Digits as pixels in [0, 1]; the channels differ"
    x,y = digits_dls(n_train=10, n_valid=n, device='cpu').valid_ds.tensors
    return x.float().as_subclass(Tensor).div(255)*tensor([1,.7,.4])[:n_channels,None,None],y.as_subclass(Tensor)

def pixel_dls(x, y, cls=Tensor, tfms=(), **kwargs): return tensor_dls((x.as_subclass(cls), y), (x.as_subclass(cls), y), bs=25, device='cpu', after_batch=list(tfms), **kwargs)

@pytest.fixture(scope='module')
def trained():
    set_seed(0)
    return learner(digits_dls(device='cpu'), small_cnn(), 1e-2)

@pytest.fixture(scope='module')
def mnist():
    if not (fastai_cfg().path('data')/'mnist_png').exists(): pytest.skip("mnist_png is not in fastai's data folder: untar_data puts it there")
    set_seed(0)
    return learner(mnist_dls(n_train=1000, n_valid=1000, device='cpu'), small_cnn(), 1e-2, 15)   # the test images need not be read

@pytest.fixture
def quick():
    "Not trained, but with what a call could disturb: batch normalisation, dropout"
    set_seed(1)
    return learner(digits_dls(n_train=200, n_valid=100, device='cpu'), nn.Sequential(ConvLayer(1, 4, stride=2), nn.Flatten(), nn.Linear(64,16), nn.ReLU(), nn.Dropout(.5), nn.Linear(16,10)))

class Scaled(nn.Module):
    def __init__(self, model, c): super().__init__(); self.model,self.c = model,c
    def forward(self, x): return self.c*self.model(x)

# The table

def test_without_an_attack_it_is_validate(trained):
    loss,acc = trained.validate()
    t = robustness(trained, tests='fgsm', eps=(0,.01,.03,.1,.3), n=None)
    assert list(t.columns) == ['kind','test','level','n','error','accuracy','nll'] and list(t.test) == ['clean']+['fgsm']*5 and list(t.level) == [0,0,.01,.03,.1,.3]
    assert (t.n == 360).all() and np.allclose(t.error + t.accuracy, 1)
    assert t.accuracy[0] == pytest.approx(acc, abs=1e-6) and t.nll[0] == pytest.approx(loss, rel=1e-4)
    assert t.iloc[0,3:].equals(t.iloc[1,3:])                                           # ε = 0
    assert t.accuracy[1:].is_monotonic_decreasing and t.nll[1:].is_monotonic_increasing and t.accuracy[5] < .2 < .9 < t.accuracy[0]

def test_pgd_is_stronger_than_fgsm_and_without_a_bound_leaves_nothing(trained):
    t = robustness(trained, tests='attack', eps=(0,.03,.1), n=200).set_index(['test','level'])
    for e in (.03,.1): assert t.nll['pgd',e] > t.nll['fgsm',e] and t.accuracy['pgd',e] <= t.accuracy['fgsm',e]
    assert ('pgd',0) not in t.index and t.accuracy['unbounded_pgd',math.inf] < .05

def test_mnist(mnist):
    acc = mnist.validate()[1]
    t = robustness(mnist, tests=['fgsm','unbounded_pgd'], eps=(0,.03,.1,.3), n=200).set_index(['test','level']).accuracy
    assert t['fgsm',0] == t['clean',0] > .8 and t['fgsm'].is_monotonic_decreasing and t['fgsm',.3] < .2 and t['unbounded_pgd',math.inf] < .05
    assert robustness(mnist, tests=[], n=None).accuracy[0] == pytest.approx(acc, abs=1e-6) and abs(t['clean',0] - acc) < .08   # the sample is fair, and the data set sorted

def test_all_tests_and_levels(quick):
    t,tests = robustness(quick, n=20, **FAST),robustness_tests()
    assert {k: list(g.test.unique()) for k,g in t[1:].groupby('kind')} == tests and list(t.columns[:3]) == ['kind','test','level'] and t.notna().all(axis=None)
    levels = {k: list(g.level) for k,g in t.groupby('test')}
    for k in tests['deformation']: assert levels[k] == list(deformations[k][1])
    for k in tests['corruption']: assert levels[k] == [1,2,3,4,5]
    assert levels['fgsm'] == [0,.01,.03,.1,.3] and levels['pgd'] == [.01,.03,.1,.3] and levels['unbounded_pgd'] == [math.inf]
    assert t.error.between(0, 1).all() and len(t) == 1+5+4+1+4+5+8+40

def test_error_and_nll_by_hand(quick, monkeypatch):
    x,y = (t.as_subclass(Tensor) for t in quick.dls.valid.one_batch())
    quick.model.eval()
    with torch.no_grad(): z = quick.model((x*.376 + .305).clamp(0,1).flip(3).sub(.305).div(.376))
    monkeypatch.setitem(R.deformations, 'shear', (lambda x,v,g: x.flip(3),(180.,)))
    row = robustness(quick, tests='shear', n=None).iloc[1]
    assert row.level == 180 and row.n == 100 and row.error == pytest.approx((z.argmax(1) != y).float().mean().item()) and row.nll == pytest.approx(F.cross_entropy(z, y).item(), rel=1e-5)

def test_nll_of_sure_errors(quick):
    z,y = quick.get_preds(act=noop)
    for c in (30,1e5):                                                                 # −log of the smallest float64 is the most
        by_hand = F.cross_entropy(c*z.double(), y, reduction='none').clamp(max=-math.log(np.finfo(float).tiny)).mean().item()
        assert robustness(learner(quick.dls, Scaled(quick.model, c)), tests=[], n=None).nll[0] == pytest.approx(by_hand, rel=1e-3)

def test_probabilities_are_those_of_the_loss(quick):
    class Halved(CrossEntropyLossFlat):
        def activation(self, x): return F.softmax(x/2, -1)
    cold = robustness(quick, tests=[]).nll[0]
    quick.loss_func = Halved()
    z,y = quick.get_preds(act=noop)
    assert robustness(quick, tests=[]).nll[0] == pytest.approx(F.cross_entropy(z/2, y).item(), rel=1e-4) and cold == pytest.approx(F.cross_entropy(z, y).item(), rel=1e-4)

# Attacks

def linear(k=3, shape=(1,2,3), seed=0, n=6):
    g = gen(seed)
    W,b = (torch.randn(*s, generator=g, dtype=torch.double) for s in ((k,np.prod(shape)),(k,)))
    x,y = torch.rand(n, *shape, generator=g, dtype=torch.double),torch.randint(k, (n,), generator=g)
    x[0].clamp_(0, .02); x[1].clamp_(.98, 1)                                           # near the ends of the range
    return (lambda x: F.softmax(x.flatten(1)@W.T + b, 1)),x,y,W.tolist(),b.tolist()

def sign(v): return (v > 0) - (v < 0)
def clip(v, lo, hi): return max(lo, min(v, hi))
def hand_grad(x, y, W, b):
    "∂(−log p_y)/∂x_i = Σ_k (p_k − [k=y]) W_ki of one image, a list"
    e = [math.exp(sum(w*v for w,v in zip(row, x)) + c) for row,c in zip(W, b)]
    return [sum((e[k]/sum(e) - (k == y))*W[k][i] for k in range(len(b))) for i in range(len(x))]
def hand_pgd(x, y, W, b, eps, steps, step, start):
    a = [clip(v + eps*s, 0, 1) for v,s in zip(x, start)] if start else x
    for _ in range(steps):
        a = [v + step*sign(g) for v,g in zip(a, hand_grad(a, y, W, b))]
        a = [clip(clip(v, o-eps, o+eps), 0, 1) for v,o in zip(a, x)]
    return a

@pytest.mark.parametrize('eps', [0,.01,.1,.5,1])
def test_fgsm_by_hand(eps):
    f,x,y,W,b = linear()
    by_hand = [[clip(v + eps*sign(g), 0, 1) for v,g in zip(r, hand_grad(r, k, W, b))] for r,k in zip(x.flatten(1).tolist(), y.tolist())]
    with torch.no_grad(): adv = fgsm(f, x, y, eps)                                     # as `robustness` calls it
    assert_close(adv.flatten(1), tensor(by_hand).double(), rtol=0, atol=1e-7)
    assert not adv.requires_grad and not x.requires_grad and x.grad is None

def test_fgsm_by_finite_differences():
    set_seed(0)
    m = nn.Sequential(nn.Conv2d(1,3,3), nn.Tanh(), nn.Flatten(), nn.Linear(12,4), nn.Softmax(1)).double()
    x,y,h = torch.rand(3,1,4,4).double()*.8+.1,tensor([0,3,1]),1e-6
    L = lambda x: -m(x)[range(3),y].log()
    moved = (fgsm(m, x, y, .05) - x).flatten(1)
    with torch.no_grad():
        for i in range(16):
            e = h*torch.eye(16)[i].view(1,1,4,4).double()
            d = (L(x+e) - L(x-e))/(2*h)
            assert (d.abs() > 1e-6).all() and torch.equal(d.sign(), (moved[:,i]/.05).round())

@pytest.mark.parametrize('begin', [True,False])
@pytest.mark.parametrize('eps, steps, step', [(.1,20,None),(.3,4,.2),(.05,1,None),(0,3,None),(math.inf,9,None),(math.inf,9,.1)])
def test_pgd_by_hand(eps, steps, step, begin):
    f,x,y,W,b = linear()
    start = torch.rand(x.shape, generator=gen(5), dtype=torch.double)*2 - 1
    if eps == math.inf: step_by_hand,begun = step or .01,[None]*len(x)                 # without a bound there is no random start
    else: step_by_hand,begun = step or 2.5*eps/steps,start.flatten(1).tolist() if begin else [None]*len(x)
    by_hand = [hand_pgd(r, k, W, b, eps, steps, step_by_hand, s) for r,k,s in zip(x.flatten(1).tolist(), y.tolist(), begun)]
    with torch.no_grad(): adv = pgd(f, x, y, eps, steps, step, start if begin else None)
    assert_close(adv.flatten(1), tensor(by_hand).double(), rtol=0, atol=1e-7)
    assert not adv.requires_grad and (adv >= 0).all() and (adv <= 1).all() and (adv - x).abs().max() <= eps + 1e-12

@pytest.mark.parametrize('eps', [.01,.2,.9])
def test_pgd_stays_near_the_image(eps):
    set_seed(0)
    m = nn.Sequential(nn.Flatten(), nn.Linear(48,10), nn.ReLU(), nn.Linear(10,3), nn.Softmax(1))
    x,y = torch.rand(20,3,4,4).round(decimals=1),torch.arange(20)%3                    # some at 0 and 1
    adv = pgd(m, x, y, eps, steps=7, start=torch.rand(x.shape)*2-1)
    assert (adv - x).abs().max() <= eps + 1e-6 and adv.min() >= 0 and adv.max() <= 1 and not torch.equal(adv, x)

def test_pgd_starts_where_it_is_told():
    flat = lambda x: F.softmax(0*x.flatten(1)[:,:3], 1)                                # a gradient of 0 gives no step
    x,start = torch.rand(4,1,2,2, generator=gen()),torch.rand(4,1,2,2, generator=gen(1))*2-1
    y = tensor([0,1,2,0])
    assert torch.equal(pgd(flat, x, y, .3, start=start), (x + .3*start).clamp(0,1)) and torch.equal(pgd(flat, x, y, .3), x) and torch.equal(fgsm(flat, x, y, .3), x)

@pytest.mark.parametrize('eps, steps, step, length', [(.1,20,None,.0125),(.1,50,None,.005),(.1,20,.03,.03),(math.inf,5,None,.01),(math.inf,5,.02,.02)])
def test_how_long_a_step_is(eps, steps, step, length):
    f,x,y,*_ = linear()
    x,seen = x*0 + .5,[]
    pgd(lambda x: seen.append(x.detach()) or f(x), x, y, eps, steps, step)
    assert_close((seen[1] - seen[0]).abs(), torch.full_like(x, length))
    assert len(seen) == steps

def test_pgd_without_a_bound_ends_early():
    calls = []
    def f(x, w=10.):
        calls.append(1)
        m = x.flatten(1).mean(1)
        return F.softmax(torch.stack([w*m, 0*m + w*.5], 1), 1)                         # class 0 where it is brighter than grey
    bright = lambda v: torch.full((3,1,2,2), v)
    y = torch.zeros(3, dtype=torch.long)
    for v,n in ((.55,11),(.65,22),(.4,11)):                                            # a step each call, and a look at every tenth
        calls.clear()
        adv = pgd(f, bright(v), y, steps=100)
        assert len(calls) == n and (f(adv).argmax(1) == 1).all()
    calls.clear(); pgd(f, torch.cat([bright(.55), bright(.99)]), y.repeat(2), steps=30)
    assert len(calls) == 33                                                            # one is not misled: all steps
    calls.clear(); pgd(f, bright(.55), y, eps=.5, steps=30)
    assert len(calls) == 30                                                            # a bound: no early end

@pytest.mark.parametrize('gap', [0,5,20,60,90,300,600])
def test_sure_models_show_their_gradient(gap):
    # of −log p_y the label's part of the gradient is lost at gaps above 37, and all of it above 104: what comes to a float32 model is below 1e-45
    g = gen(gap)
    W,x,y = torch.randn(4,20, generator=g),torch.rand(50,1,4,5, generator=g),torch.arange(50)%4
    x = x*.8 + .1
    far = F.one_hot(y, 4)*float(gap)
    f = lambda x: F.softmax((x.flatten(1)@W.T + far).double(), 1)                      # as `robustness` does: a float32 model, float64 probabilities
    z = (x.flatten(1)@W.T).double().masked_fill(F.one_hot(y, 4).bool(), -math.inf)
    exact = (F.softmax(z, 1)@W.double()) - W[y]                                        # Σ_{k≠y} p_k (W_k − W_y), but for a factor above 0
    clear = exact.abs() > .01
    assert clear.float().mean() > .9 and torch.equal(fgsm(f, x, y, .05).sub(x).flatten(1).sign()[clear].double(), exact.sign()[clear])

@pytest.mark.parametrize('c', [2,10])
def test_sure_models_are_no_more_robust(c, trained):
    # the classes are the same for every c
    with trained.no_bar(): plain,sure = (robustness(Learner(trained.dls, Scaled(trained.model, s), loss_func=CrossEntropyLossFlat()), tests=['fgsm','unbounded_pgd'], eps=(.1,.3), n=200).accuracy for s in (1,c))
    assert sure[0] == plain[0] and sure[1] < plain[1] + .2 and sure[2] < .2 and sure[3] < .05

def test_what_the_attacks_are_given(quick, monkeypatch):
    calls = []
    monkeypatch.setattr(R, 'pgd', lambda f,x,y,*args,**kw: calls.append((x, args, kw)) or x)
    robustness(quick, tests='attack', eps=(0,.02,.5), steps=7, unbounded=dict(steps=50), n=30)
    (x,a,kw),(_,b,kw2),(_,c,free) = calls
    assert a == (.02,7) and b == (.5,7) and c == () and free == dict(steps=50, step=.01)
    assert kw['start'].shape == x.shape and -1 <= kw['start'].min() < -.9 and .9 < kw['start'].max() <= 1 and not torch.equal(kw['start'], kw2['start'])
    calls.clear(); robustness(quick, tests='unbounded_pgd', n=30)
    assert calls[0][2] == dict(steps=200, step=.01)                                    # the paper's

def test_pgd_without_a_bound_leaves_alone_what_it_has_misled():
    "Each sample stops at the first tenth step that finds it misclassified, as it would by itself; bounded PGD goes on with all"
    f,x,y,*_ = linear(n=12)
    seen = []
    def counted(x): seen.append(len(x)); return f(x)
    with torch.no_grad(): adv = pgd(counted, x, y, steps=40)
    alone = torch.cat([pgd(f, x[i:i+1], y[i:i+1], steps=40) for i in range(len(x))])
    assert_close(adv, alone, rtol=0, atol=1e-12)
    assert seen[:11] == [12]*11 and seen == sorted(seen, reverse=True) and 0 < seen[-1] < 12 and (f(adv).argmax(1) != y).any()
    seen.clear(); pgd(counted, x, y, .5, steps=40)
    assert seen == [12]*40

# Normalisation

class Norm(nn.Module):
    def __init__(self, mean, std): super().__init__(); self.mean,self.std = tensor(mean).view(-1,1,1),tensor(std).view(-1,1,1)
    def forward(self, x): return (x - self.mean)/self.std

STATS = {1: ([.3],[.4]), 3: ([.1,.5,.45],[.2,.3,2.])}

@pytest.mark.parametrize('channels, cls', [(1,TensorImage),(1,TensorImageBW),(3,TensorImage)])
def test_normalisation_is_respected(channels, cls):
    (x,y),stats = real(channels),STATS[channels]
    set_seed(2)
    model = nn.Sequential(nn.Conv2d(channels,8,3,stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(72,10))
    with_it = robustness(learner(pixel_dls(x, y, cls, [Normalize.from_stats(*stats, cuda=False)]), model), steps=4, unbounded=dict(steps=12))
    without = robustness(learner(pixel_dls(x, y, cls), nn.Sequential(Norm(*stats), model)), steps=4, unbounded=dict(steps=12))
    assert_table(with_it.drop(columns=['error','accuracy']), without.drop(columns=['error','accuracy']), rtol=1e-3)
    assert (with_it.error - without.error).abs().max() <= 1/60 + 1e-9                  # a tie may go either way

@pytest.mark.parametrize('norm', [lambda: Normalize.from_stats(*STATS[3], cuda=False), lambda: Normalize()], ids=['stats','measured'])
def test_pixels_there_and_back(norm):
    # a measured mean is a TensorImage
    x,y = real(3)
    dl = pixel_dls(x, y, TensorImage, [norm()]).valid                                  # `Normalize()` measures mean and std itself
    b,space = dl.one_batch()[0],PixelSpace(dl)
    assert b.min() < -.1 and type(space.to(b)) is Tensor
    assert_close(space.to(b), x[:len(b)], rtol=0, atol=1e-6); assert_close(space.back(space.to(b)), b.as_subclass(Tensor), rtol=0, atol=1e-5)
    assert torch.equal(PixelSpace(pixel_dls(x, y).valid).to(x), x) and torch.equal(PixelSpace(pixel_dls(x, y).valid).back(x), x)

@pytest.mark.parametrize('change', [lambda x: x*255, lambda x: x-.01, lambda x: (x-.3)/.4])
def test_images_that_are_no_pixels_are_an_error(change):
    x,y = real()
    learn = learner(pixel_dls(change(x), y), small_cnn())
    before = state_of(learn)
    with pytest.raises(ValueError, match=r'no Normalize.*\[0, 1\]'): robustness(learn)
    assert state_of(learn) == before

def test_normalize_that_does_not_act():
    # fastai's Normalize passes plain tensors by: the loader gives pixels
    (x,y),norm = real(),Normalize.from_stats(*STATS[1], cuda=False)
    dls = pixel_dls(x, y, Tensor, [norm])
    assert torch.equal(dls.valid.one_batch()[0], x[:50])                               # not normalised
    assert_close(PixelSpace(dls.valid).to(dls.valid.one_batch()[0]), x[:50])
    model = small_cnn()
    assert_table(robustness(learner(dls, model), **FAST), robustness(learner(pixel_dls(x, y), model), **FAST))

def plain_dls(x, y, **kwargs):
    "fastai's own loader over a list of items, which knows neither transforms nor inputs"
    items = list(zip(x.as_subclass(Tensor), y))
    return DataLoaders(*[DataLoader(items, bs=50, **kwargs)]*2, device='cpu')

def test_plain_loaders():
    (x,y),model = real(),small_cnn()
    assert_table(robustness(learner(plain_dls(x, y), model), **FAST), robustness(learner(pixel_dls(x, y), model), **FAST))
    norm = Normalize.from_stats(*STATS[1], cuda=False)
    space = PixelSpace(DataLoader([1], after_batch=norm))
    assert torch.equal(space.mean, norm.mean) and torch.equal(space.std, norm.std)

# The learner is left as it was

def state_of(learn):
    m = learn.model
    return dict(weights={k: v.tolist() for k,v in m.state_dict().items()}, grads=[p.grad if p.grad is None else p.grad.tolist() for p in m.parameters()], ids=[id(p) for p in m.parameters()],
                training=[o.training for o in m.modules()], requires_grad=[p.requires_grad for p in m.parameters()], hooks=len(hooks(m)), random=random_state(),
                cudnn=(torch.backends.cudnn.deterministic,torch.backends.cudnn.benchmark), grad_mode=torch.is_grad_enabled(),
                loaders=[(dl.rng.getstate(), dl.shuffle, dl.drop_last, dl.n, dl.bs, dl.dataset.split_idx, [f.split_idx for f in dl.after_batch.fs], [t.tolist() for t in dl.dataset.tensors]) for dl in learn.dls.loaders],
                learn={k: id(v) for k,v in learn.__dict__.items()}, recorder={k: id(v) for k,v in vars(learn.recorder).items()})

class Bomb(nn.Module):
    "Goes off in its `at`-th forward"
    def __init__(self, at): super().__init__(); self.at,self.n = at,0
    def forward(self, x):
        self.n += 1
        if self.n == self.at: raise RuntimeError('bomb')
        return x

def disturb(learn):
    "Every kind of flag, mixed"
    learn.model.train(); learn.model[0].eval(); learn.model[0][1].train(); learn.model[4].eval()
    ps = list(learn.model.parameters())
    ps[0].requires_grad_(False)
    ps[3].grad = torch.randn_like(ps[3])
    learn.model[2].register_forward_hook(lambda *a: None)
    torch.rand(3); random.random(); np.random.rand()
    return learn

@pytest.mark.parametrize('which', ['valid','train'])
@pytest.mark.parametrize('bomb', [None,1,2,9,40,150])
def test_the_learner_is_left_as_it_was(quick, bomb, which):
    x,y = real(n=100)
    dls = tensor_dls((TensorImageBW(x),y), (TensorImageBW(x),y), bs=16, val_bs=30, device='cpu', after_batch=[PadCrop(1), MirrorFlip(), Normalize.from_stats([.3],[.4], cuda=False)])
    learn = disturb(learner(dls, nn.Sequential(*quick.model, Bomb(bomb))))
    dls.train.one_batch()
    before = state_of(learn)
    assert {None} < {type(g) if g is None else None for g in before['grads']} | {0} and len(set(before['training'])) == 2 and len(set(before['requires_grad'])) == 2   # the test has something to find
    with pytest.raises(RuntimeError, match='bomb') if bomb else contextlib.nullcontext(): robustness(learn, getattr(dls, which), n=60, **FAST)
    assert (learn.model[-1].n > 150 if bomb is None else learn.model[-1].n == bomb) and dls.train.dataset.split_idx == 0
    after = state_of(learn)
    for k in before: assert after[k] == before[k], k

def test_training_goes_on_the_same(quick):
    res = []
    for measure in (False,True):
        learn = again(quick)
        learn.fit(1, 1e-2)
        if measure: robustness(learn, n=20, **FAST); robustness(learn, learn.dls.train, tests='deformation', n=20)
        learn.fit(1, 1e-2)
        res.append((weights(learn), [l.item() for l in learn.recorder.losses], random_state()))
    assert same(res[0][0], res[1][0]) and res[0][1:] == res[1][1:]

def again(learn):
    set_seed(3)
    return learner(digits_dls(n_train=200, n_valid=100, device='cpu'), deepcopy(learn.model))

def test_modes_do_not_matter(quick):
    tables = []
    for f in (quick.model.train, quick.model.eval, lambda: disturb(quick)): f(); tables.append(robustness(quick, n=30, **FAST))
    for t in tables[1:]: assert_table(t, tables[0])                                    # dropout and batch statistics are off

def test_frozen_models_can_be_attacked(quick):
    t = robustness(quick, tests='attack', n=40, **FAST)
    for p in quick.model.parameters(): p.requires_grad_(False)
    assert_table(robustness(quick, tests='attack', n=40, **FAST), t)
    with torch.no_grad(): assert_table(robustness(quick, tests='attack', n=40, **FAST), t)

def test_a_first_layer_that_works_in_place():
    # without a Normalize the model must not be given the very images that are measured
    x,y = real()
    learns = [learner(pixel_dls(x, y), nn.Sequential(nn.Hardtanh(.2, .8, inplace=i), small_cnn())) for i in (False,True)]
    learns[1].model[1].load_state_dict(learns[0].model[1].state_dict())
    tables = [robustness(l, **FAST) for l in learns]
    assert_table(*tables)

def test_the_progress_bar_moves_with_the_passes(quick, monkeypatch):
    "Within an attack too; the last pass is all of them, and each is told with the test's name and the time left"
    from fastprogress.fastprogress import ConsoleProgressBar
    told = []
    monkeypatch.setattr(ConsoleProgressBar, 'update', lambda self,val: told.append((val, self.total, self.comment)))
    quick.add_cb(ProgressCallback())
    calls = []
    hook = quick.model.register_forward_pre_hook(lambda m,x: calls.append(1 + x[0].requires_grad))
    robustness(quick, n=100, tests=['pgd','unbounded_pgd','contrast'], eps=(.1,), steps=7, unbounded=dict(steps=20))
    hook.remove()
    values,totals,names = zip(*told)
    assert list(values) == sorted(values) and set(totals) == {values[-1]} and list(dict.fromkeys(names))[1:] == ['clean','pgd','unbounded_pgd','contrast']
    batches = len(list(quick.dls.valid))
    assert sum(n == 'pgd' for n in names) >= 8*batches and values[-1] == batches*(1 + (1+14) + (1+42) + 5) >= sum(calls) - 1   # one for a look at the output

def test_the_progress_bar_changes_nothing(quick, capsys):
    t = robustness(quick, n=20, **FAST)
    quick.add_cb(ProgressCallback())
    assert_table(robustness(quick, n=20, **FAST), t)
    with quick.no_bar(): capsys.readouterr(); robustness(quick, n=20, **FAST)
    assert capsys.readouterr().out == ''

# Samples and seeds

def test_same_seed_same_table(quick):
    t = robustness(quick, n=50, **FAST)
    random.random(); torch.rand(1); np.random.rand()
    assert_table(robustness(quick, n=50, **FAST), t)
    other = robustness(quick, n=50, seed=1, **FAST)
    assert not np.isclose(other.nll, t.nll).any()                                      # another sample
    every = [robustness(quick, tests=['rotation','shear','gaussian_noise','shot_noise','impulse_noise','pgd'], n=None, steps=1, seed=s) for s in (0,1)]
    assert every[0].nll[0] == every[1].nll[0] and (every[0].nll[1:] != every[1].nll[1:]).all()   # the same images, other random numbers

def test_how_many(quick):
    assert (robustness(quick, tests='contrast', n=37).n == 37).all()
    every = robustness(quick, tests='contrast', n=None)
    assert (every.n == 100).all()
    for n in (100,101,10**6): assert_table(robustness(quick, tests='contrast', n=n), every)
    with pytest.raises(ValueError, match='`n`'): robustness(quick, n=0)

def test_the_sample_is_that_of_sampled_dl(quick):
    t = robustness(quick, tests=[], n=30, seed=4)
    z,y = quick.get_preds(dl=sampled_dl(quick.dls.valid, 30, 4), act=noop)
    assert t.nll[0] == pytest.approx(F.cross_entropy(z, y).item(), rel=1e-4)

def test_a_training_loader():
    "Shuffled, augmented, without its last batch: all samples, once"
    x,y = real(3)
    norm = Normalize.from_stats(*STATS[3], cuda=False)
    learn = learner(pixel_dls(x, y, TensorImage, [norm], val_bs=25), small_cnn(3))   # random numbers are drawn batch by batch
    items = [(TensorImage(a), TensorCategory(b)) for a,b in zip(x, y)]
    dl = TfmdDL(items, bs=25, num_workers=0, shuffle=True, drop_last=True, after_batch=[*aug_transforms(size=8), norm], device=torch.device('cpu'))
    before = dl.rng.getstate(),random_state()
    t = robustness(learn, dl, n=None, **FAST)
    assert (t.n == 60).all() and (dl.rng.getstate(),random_state()) == before and (robustness(learn, dl, tests='fgsm', n=40).n == 40).all()
    assert_table(robustness(learn, learn.dls.train, n=None, **FAST), robustness(learn, learn.dls.valid, n=None, **FAST))

def test_training_images_are_not_augmented():
    x,y = real()
    learn = learner(tensor_dls((TensorImageBW(x),y), (TensorImageBW(x),y), bs=16, device='cpu', after_batch=[PadCrop(2), MirrorFlip()]), small_cnn())
    assert_table(robustness(learn, learn.dls.train, tests='contrast', n=None), robustness(learn, tests='contrast', n=None))
    assert learn.dls.train.dataset.split_idx == 0

# Deformations and corruptions

SHAPES = [(8,8),(28,28),(32,32),(20,30)]
CHANGES = {**{k: f for k,(f,_) in deformations.items()}, **{k: f for k,(f,_) in corruptions.items()}}
LEVELS  = {**{k: v for k,(_,v) in deformations.items()}, **{k: v for k,(_,v) in corruptions.items()}}

def images(c=3, size=(28,28), n=4, seed=0): return torch.rand(n, c, *size, generator=gen(seed))
def smooth(c=1, size=(20,30)):
    i,j = torch.meshgrid(torch.arange(size[0])/7, torch.arange(size[1])/9, indexing='ij')
    return torch.stack([.5+.4*torch.sin(i+k)*torch.cos(j*(1+k/4)) for k in range(c)])[None]
def turn_all(monkeypatch, degrees): monkeypatch.setattr(R, '_angles', lambda n,d,g: torch.full((n,), math.radians(degrees)))

@pytest.mark.parametrize('name', CHANGES)
def test_shape_and_range(name):
    for size in SHAPES:
        for c in (1,3):
            x = torch.cat([images(c, size), torch.zeros(1,c,*size), torch.ones(1,c,*size), smooth(c, size)])
            keep = x.clone()
            for v in LEVELS[name]:
                a,b = (CHANGES[name](x, v, gen(1)) for _ in range(2))
                assert a.shape == x.shape and a.dtype == x.dtype and a.min() >= 0 and a.max() <= 1 + 1e-6 and torch.equal(a, b), (size, c, v)
                assert torch.equal(x, keep)                                            # not in place

@pytest.mark.parametrize('name, level', [('rotation',0),('shear',0),('zoom',1),('gaussian_noise',0),('impulse_noise',0),('contrast',1),('brightness',0),('pixelate',1)])
def test_levels_that_change_nothing(name, level):
    for size in SHAPES:
        for c in (1,3): assert_close(CHANGES[name](images(c, size), level, gen()), images(c, size), rtol=0, atol=2e-5)

@pytest.mark.parametrize('name', corruptions)
def test_severities_rise(name):
    x = torch.cat([smooth(3, (32,32)), .5*images(3, (32,32))])
    away = [(CHANGES[name](x, v, gen()) - x).abs().mean().item() for v in LEVELS[name]]
    assert len(away) == 5 and sorted(away) == away and away[0] > 0

@pytest.mark.parametrize('name', ['rotation','shear'])
def test_each_image_has_its_own_angle(name):
    x = smooth().expand(6,-1,-1,-1)
    a = CHANGES[name](x, 40, gen())
    assert all((a[i] - a[j]).abs().max() > 1e-3 for i in range(6) for j in range(i)) and not torch.equal(a, CHANGES[name](x, 40, gen(1)))

@pytest.mark.parametrize('degrees', [20,171.9])
def test_angles_are_even(degrees):
    a = torch.rad2deg(R._angles(20_000, degrees, gen())).numpy()
    assert st.kstest(a, st.uniform(-degrees, 2*degrees).cdf).pvalue > .01

@pytest.mark.parametrize('size', [(28,28),(20,30),(31,16)])
@pytest.mark.parametrize('degrees', [-75,-20,10,45,90,130])
def test_rotation_is_torchvisions(degrees, size, monkeypatch):
    turn_all(monkeypatch, degrees)
    assert_close(rotate(smooth(3, size), 0, None), TF.rotate(smooth(3, size), degrees, TF.InterpolationMode.BILINEAR), rtol=0, atol=1e-4)

def test_a_quarter_turn_keeps_the_aspect(monkeypatch):
    turn_all(monkeypatch, 90)
    x = images(3, (20,30))
    a = rotate(x, 0, None)
    assert_close(a[...,5:-5], torch.rot90(x[...,5:-5], 1, (2,3)), rtol=0, atol=1e-4)   # the middle square; what was above and below it is gone
    assert a[...,:4].abs().max() < 1e-4 and a[...,-4:].abs().max() < 1e-4              # and black comes in
    turn_all(monkeypatch, 180)
    assert_close(rotate(x, 0, None), x.flip(2,3), rtol=0, atol=1e-4)

@pytest.mark.parametrize('size', [(28,28),(20,30)])
@pytest.mark.parametrize('degrees', [-171.9,-60,28.6,114.6])
def test_shear_is_that_of_keras(degrees, size, monkeypatch):
    turn_all(monkeypatch, degrees)
    s,x = math.radians(degrees),smooth(1, size)
    m,mid = np.array([[1,-math.sin(s)],[0,math.cos(s)]]),(np.array(size)-1)/2          # over (row, column), around the middle
    ref = ndimage.affine_transform(x[0,0].double().numpy(), m, mid - m@mid, order=1, mode='grid-constant')
    assert_close(shear(x, 0, None)[0,0], torch.from_numpy(ref).float(), rtol=0, atol=1e-4)

def test_a_shear_by_180_degrees_is_a_mirror(monkeypatch):
    turn_all(monkeypatch, 180)
    for size in SHAPES: assert_close(shear(images(3, size), 0, None), images(3, size).flip(3), rtol=0, atol=1e-4)

@pytest.mark.parametrize('size', [(8,8),(28,28),(20,32)])
def test_zoom_is_crop_and_resize(size):
    (h,w),x = size,images(3, size)
    ref = F.interpolate(x[...,h//4:-(h//4),w//4:-(w//4)], size, mode='bilinear', align_corners=False)
    assert_close(zoom(x, .5)[...,1:-1,1:-1], ref[...,1:-1,1:-1], rtol=0, atol=1e-5)    # at the border the crop knows no neighbours
    out = zoom(x, 2.)
    assert_close(out[...,h//4:-(h//4),w//4:-(w//4)], F.avg_pool2d(x, 2), rtol=0, atol=1e-5)
    out[...,h//4:-(h//4),w//4:-(w//4)] = 0
    assert not out.any()                                                               # black outside

@pytest.mark.parametrize('k', [.2,.8,1.4])
def test_zoom_of_any_size(k):
    x,m = smooth(1, (20,30)),np.eye(2)*k
    mid = np.array([9.5,14.5])
    assert_close(zoom(x, k)[0,0], torch.from_numpy(ndimage.affine_transform(x[0,0].double().numpy(), m, mid - m@mid, order=1, mode='grid-constant')).float(), rtol=0, atol=1e-4)

grey = torch.full((2,3,200,200), .5)

@pytest.mark.parametrize('c', corruptions['gaussian_noise'][1])
def test_gaussian_noise(c):
    d = corruptions['gaussian_noise'][0](grey, c, gen()) - .5
    assert d.std().item() == pytest.approx(c, rel=.01) and abs(d.mean().item()) < c/100 and abs(d.flatten()[:-1]@d.flatten()[1:]/d.numel()) < .01*c*c   # each pixel and channel its own

@pytest.mark.parametrize('c', corruptions['shot_noise'][1])
@pytest.mark.parametrize('v', [0,.1,.5])
def test_shot_noise(v, c):
    a = corruptions['shot_noise'][0](2*v*grey, c, gen())
    assert a.mean().item() == pytest.approx(v, rel=.01) and a.var().item() == pytest.approx(v/c, rel=.02)
    assert_close(a*c, (a*c).round(), rtol=0, atol=1e-3)                                # counts

@pytest.mark.parametrize('c', corruptions['impulse_noise'][1])
def test_impulse_noise(c):
    a = corruptions['impulse_noise'][0](grey, c, gen())
    assert {0,.5,1} == set(a.unique().tolist())
    for v in (0,1): assert (a == v).float().mean().item() == pytest.approx(c/2, abs=4*math.sqrt(c/2/a.numel()))

@pytest.mark.parametrize('size', SHAPES)
@pytest.mark.parametrize('c', [*corruptions['gaussian_blur'][1],3.])
def test_blur(c, size):
    x,f = images(3, size),corruptions['gaussian_blur'][0]
    k = 2*min(math.ceil(4*c), (min(size)-1)//2)+1                                      # 4σ to each side, less on small images
    assert_close(f(x, c, None), TF.gaussian_blur(x, k, c))
    if k == 2*math.ceil(4*c)+1: assert_close(f(x, c, None), torch.from_numpy(ndimage.gaussian_filter(x.double().numpy(), c, mode='mirror', axes=(2,3))).float(), rtol=0, atol=1e-3)

@pytest.mark.parametrize('c', corruptions['brightness'][1])
def test_brightness_is_the_v_of_hsv(c):
    def hand(rgb):
        h,s,v = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb(h, s, min(1, v+c))
    x = torch.cat([images(3, (8,8), 2), torch.zeros(1,3,8,8), torch.ones(1,3,8,8)])
    by_hand = tensor([[[hand(p) for p in row] for row in im] for im in x.permute(0,2,3,1).tolist()]).permute(0,3,1,2)
    assert_close(corruptions['brightness'][0](x, c, None), by_hand, rtol=0, atol=1e-5)
    assert_close(corruptions['brightness'][0](x[:,:1], c, None), (x[:,:1]+c).clamp(max=1), rtol=0, atol=1e-6)

@pytest.mark.parametrize('c', [*corruptions['contrast'][1],3])
def test_contrast_is_around_the_mean(c):
    x = images(3, (4,5), 2)
    by_hand = []
    for im in x.tolist():
        for ch in im:
            mean = sum(map(sum, ch))/20
            by_hand.append([[clip(mean + c*(v - mean), 0, 1) for v in row] for row in ch])
    assert_close(corruptions['contrast'][0](x, c, None), tensor(by_hand).view(x.shape), rtol=0, atol=1e-6)

@pytest.mark.parametrize('size', SHAPES)
def test_pixelate_is_constant_in_blocks(size):
    (h,w),x,f = size,images(3, size),corruptions['pixelate'][0]
    assert_close(f(x, .5, None), F.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert_close(f(x, .01, None), x.mean((2,3), keepdim=True).expand_as(x))            # one block is left
    for c in corruptions['pixelate'][1]:
        a = f(x, c, None)
        for dim,s in ((2,h),(3,w)): assert (a.diff(dim=dim).abs().amax((0,1,5-dim)) > 1e-6).sum() == int(s*c)-1

@pytest.mark.parametrize('size', [(8,8),(28,28),(32,32),(20,24)])                       # without ties between places
@pytest.mark.parametrize('c', [*corruptions['pixelate'][1],.5])
def test_pixelate_is_that_of_cifar10_c(c, size):
    # torch's 'area' averages overlapping bins, which blurs the whole image, and its 'nearest' shifts it: all severities are then nearly alike
    x,(h,w) = images(3, size),size
    box = lambda im: im.resize((int(w*c),int(h*c)), Image.BOX).resize((w,h), Image.BOX)
    ref = torch.stack([torch.stack([torch.from_numpy(np.array(box(Image.fromarray(ch.numpy())))) for ch in im]) for im in x])
    assert_close(corruptions['pixelate'][0](x, c, None), ref, rtol=0, atol=1e-5)

@pytest.mark.parametrize('size', SHAPES)
@pytest.mark.parametrize('channels', [1,3])
def test_jpeg_is_torchvisions(channels, size):
    x = images(channels, size)
    for q in corruptions['jpeg'][1]:
        ref = torch.stack([decode_jpeg(encode_jpeg((o*255).round().byte(), q)) for o in x])/255
        assert_close(corruptions['jpeg'][0](x, q, None), ref)

def test_the_right_level_is_given(quick, monkeypatch):
    "Severities are numbers of levels, deformations are named by theirs; each has a generator of its own"
    calls = []
    for d in (R.deformations,R.corruptions):
        for k,(f,vs) in list(d.items()): monkeypatch.setitem(d, k, (lambda x,v,g,k=k: calls.append((k, v, g.initial_seed())) or x, vs))
    t = robustness(quick, tests=['deformation','corruption'], n=10)
    assert [c[:2] for c in calls] == [(k,v) for k in LEVELS for v in LEVELS[k]] and len({c[2] for c in calls}) == len(calls)
    assert (t.nll == t.nll[0]).all() and (t.error == t.error[0]).all()

def test_a_users_own(trained, monkeypatch):
    monkeypatch.setitem(R.corruptions, 'negative', (lambda x,c,g: c - x, (1.,)))
    monkeypatch.setitem(R.deformations, 'shift', (lambda x,v,g: x.roll(v, 3), (1,3)))
    assert robustness_tests()['corruption'][-1] == 'negative' and robustness_tests()['deformation'][-1] == 'shift'
    t = robustness(trained, tests=['negative','shift'], n=None)
    assert t[['kind','test','level']].values.tolist() == [['clean','clean',0],['deformation','shift',1],['deformation','shift',3],['corruption','negative',1]]
    dl = trained.dls.valid
    x,y = (torch.cat(o) for o in zip(*dl))
    pixels,space = PixelSpace(dl).to(x),PixelSpace(dl)
    for row,v in zip(t.itertuples(), (pixels, pixels.roll(1,3), pixels.roll(3,3), 1-pixels)):
        with torch.no_grad(): assert row.accuracy == pytest.approx((trained.model.eval()(space.back(v)).argmax(1) == y).float().mean().item(), abs=1/360+1e-6)
    for k in ('corruption','deformation'): assert {'negative','shift'} & set(robustness(trained, tests=k, n=10).test)

# Arguments

@pytest.mark.parametrize('tests, found', [
    ('fgsm', ['fgsm']), (['zoom','fgsm'], ['fgsm','zoom']), (('jpeg',), ['jpeg']), ([], []), (['fgsm','fgsm'], ['fgsm']), ({'shear'}, ['shear']), (iter(['jpeg','zoom']), ['zoom','jpeg']),
    ('deformation', list(deformations)), (['corruption'], list(corruptions)), (['attack','jpeg','fgsm'], ['fgsm','pgd','unbounded_pgd','jpeg']), (L('contrast'), ['contrast'])])
def test_some_tests(tests, found, quick):
    assert list(robustness(quick, tests=tests, n=10, **FAST).test.unique()) == ['clean',*found]

@pytest.mark.parametrize('tests, named', [('rotaton',"'rotaton'"),(['fgsm','clean'],"'clean'"),(['x','y'],"'x', 'y'"),([3],'3'),([None],'None')])
def test_unknown_tests(tests, named, quick):
    with pytest.raises(ValueError, match=f'no test {named}.*attack.*rotation.*jpeg'): robustness(quick, tests=tests)

@pytest.mark.parametrize('eps', [(-.1,),(1.5,),(0,255),(float('nan'),),('a',),(None,),((.1,),)])
def test_bad_eps(eps, quick):
    with pytest.raises(ValueError, match='`eps`'): robustness(quick, tests='fgsm', eps=eps)

@pytest.mark.parametrize('eps', [[.1], np.array([.1]), L(.1), .1, np.array([.1], dtype=np.float32)])
def test_good_eps(eps, quick):
    t = robustness(quick, tests=['fgsm','pgd'], eps=eps, n=20, steps=1)
    assert list(t.test) == ['clean','fgsm','pgd'] and t.level[1] == pytest.approx(.1)

def test_no_eps(quick): assert list(robustness(quick, tests=['fgsm','pgd'], eps=(), n=10).test) == ['clean']

def test_no_steps(quick):
    with pytest.raises(ValueError, match='steps'): robustness(quick, tests='pgd', steps=0, n=10)

BATCHES = {'float targets': lambda x,y: (x,y.float()), 'flat images': lambda x,y: (x.flatten(1),y), 'no channels': lambda x,y: (x[:,0],y), 'volumes': lambda x,y: (x[:,None],y), 'bytes': lambda x,y: ((x*255).byte(),y),
           'one-hot targets': lambda x,y: (x,F.one_hot(y, 10)), 'two inputs': lambda x,y: (x,x,y), 'no targets': lambda x,y: (x,)}
@pytest.mark.parametrize('name', BATCHES)
def test_batches_that_are_no_labelled_images(name, quick):
    dl = TensorDL(TensorItems(*BATCHES[name](*real())), bs=16, device=torch.device('cpu'))
    before = state_of(quick)
    with pytest.raises(TypeError, match=r'images, \(N, C, H, W\), and integer labels'): robustness(quick, dl)
    assert state_of(quick) == before

@pytest.mark.parametrize('change', [lambda y: y[:,None], lambda y: TensorCategory(y), lambda y: y.int(), lambda y: y.to(torch.uint8)])
def test_labels_of_other_kinds(change, quick):
    x,y = real()
    a,b = (robustness(quick, TensorDL(TensorItems(x, t), bs=16, device=torch.device('cpu')), tests=['fgsm','jpeg']) for t in (y,change(y)))
    assert_table(a, b)

def test_loaders_of_torch_are_an_error(quick):
    with pytest.raises(TypeError, match='fastai'): robustness(quick, torch.utils.data.DataLoader([1]))

# Other heads, outputs, channels and labels

class Both(nn.Module):
    "The same classifier with an output for each of two classes"
    def __init__(self, model): super().__init__(); self.model = model
    def forward(self, x): z = self.model(x); return torch.cat([torch.zeros_like(z), z], 1)

def two_classes(labels=lambda y: y, channels=1, n=24):
    "Images in [0, 1] of two classes"
    g = torch.Generator().manual_seed(0)
    x,y = torch.rand(n, channels, 12, 12, generator=g),torch.arange(n)%2
    return TensorDL(TensorItems(x, labels(y)), bs=10, device=torch.device('cpu'))

def small(channels=1, n_out=1):
    "Its outputs are around 0"
    set_seed(3)
    l = nn.Linear(144*channels, n_out)
    with torch.no_grad(): l.weight *= 10; l.bias -= l.weight.sum(1)/2 + l.bias
    return nn.Sequential(nn.Flatten(), l)
def of(dl, model, loss): return Learner(DataLoaders(dl, dl), model, loss_func=loss)
FEW = dict(levels=dict(rotation=(30,), shear=(30,), zoom=(.8,), **{k: v[1][2:3] for k,v in corruptions.items()}), eps=(0,.03), steps=3, unbounded=dict(steps=3))

@pytest.mark.parametrize('labels', [lambda y: y, lambda y: y.bool(), lambda y: y.float(), lambda y: y.float()[:,None]], ids=['int','bool','float','column'])
@pytest.mark.parametrize('loss', [BCEWithLogitsLossFlat, nn.BCEWithLogitsLoss])
def test_one_logit_is_two_classes(loss, labels):
    model = small()
    want = robustness(of(two_classes(), Both(model), CrossEntropyLossFlat()), **FEW)
    got = robustness(of(two_classes(labels), model, loss()), **FEW)
    assert_table(got, want); assert got.notna().all(axis=None) and got.error.nunique() > 2
    flat = nn.Sequential(model, nn.Flatten(0))                                         # one number a sample
    assert_table(robustness(of(two_classes(labels), flat, loss()), **FEW), want)

def test_one_output_of_a_regression():
    with pytest.raises(TypeError, match='robustness: the model has one output, and MSELoss does not say'): robustness(of(two_classes(), small(), MSELossFlat()), **FEW)
    a = robustness(of(two_classes(), small(), MSELossFlat()), act=torch.sigmoid, tests='fgsm')
    assert_table(a, robustness(of(two_classes(), small(), BCEWithLogitsLossFlat()), tests='fgsm'))

@pytest.mark.parametrize('out', [lambda z: (z,z+1), lambda z: {'logits': z}, lambda z: {'loss': z.mean(), 'hidden': z[:,None], 'logits': z}, lambda z: [z]], ids=['tuple','dict','dict, later','list'])
def test_models_that_return_more_than_a_tensor(out):
    class Returns(nn.Module):
        def __init__(self): super().__init__(); self.model = small(n_out=2)
        def forward(self, x): return out(self.model(x))
    assert_table(robustness(of(two_classes(), Returns(), CrossEntropyLossFlat()), **FEW), robustness(of(two_classes(), small(n_out=2), CrossEntropyLossFlat()), **FEW))

@pytest.mark.parametrize('channels', [1,2,3,4,5])
def test_any_number_of_channels(channels, recwarn):
    t = robustness(of(two_classes(channels=channels), small(channels, 2), CrossEntropyLossFlat()), **FEW)
    assert t.notna().all(axis=None) and set(t.test) == {'clean',*[n for ns in robustness_tests().values() for n in ns]} and not [w for w in recwarn if 'cannot act' in str(w.message)]
    x = torch.rand(2, channels, 12, 12, generator=torch.Generator().manual_seed(5))
    if channels in (1,3): return
    f = corruptions['jpeg'][0]
    alike = torch.stack([torch.cat([f(im[c:c+1][None], 50, None)[0] for c in range(channels)]) for im in x])
    assert torch.equal(f(x, 50, None), alike) and not torch.equal(alike, x)

def test_a_corruption_that_cannot_act_is_told_and_the_others_stay(quick, monkeypatch):
    want = robustness(quick, tests='corruption', n=20)
    def fails(x, c, g): raise RuntimeError('only at noon')
    monkeypatch.setitem(corruptions, 'contrast', (fails, (1,2)))
    monkeypatch.setitem(corruptions, 'pixelate', (lambda x, c, g: x[:,:,:4] if c == 3 else x, (1,2,3)))
    with pytest.warns(UserWarning, match='robustness: (contrast at strength [12] cannot act on images like these: RuntimeError: only at noon|pixelate at strength 3 cannot act.*it made)') as w: t = robustness(quick, tests='corruption', n=20)
    assert len([o for o in w.list if 'cannot act' in str(o.message)]) == 3
    nan = t.error.isna()
    assert list(zip(t.test[nan], t.level[nan])) == [('contrast',1),('contrast',2),('pixelate',3)] and (t.error.isna() == t.nll.isna()).all() and (t.error.isna() == t.accuracy.isna()).all()
    assert_table(t[t.test == 'gaussian_noise'], want[want.test == 'gaussian_noise'])
    mean = np.mean([t[(t.test == k) & ~nan].error.mean() for k in corruptions if k != 'contrast'])
    assert mean_corruption_error(t) == pytest.approx(mean) and plot_robustness(t)[0].has_data()
    with pytest.warns(UserWarning, match='jpeg at strength 0'): t = robustness(quick, tests='jpeg', levels=dict(jpeg=(0,50)), n=20)
    assert t.error.isna().tolist() == [False,True,False]
    monkeypatch.setattr(quick.model[-1], 'forward', lambda x: (_ for _ in ()).throw(RuntimeError('the model')))
    with pytest.raises(RuntimeError, match='the model'): robustness(quick, tests='corruption', n=20)   # what fails in the model is no fault of the corruption

@pytest.mark.parametrize('ignored', [-100,7])
def test_images_without_a_label_are_left_out(ignored, quick):
    x,y = real()
    has = torch.arange(len(y))%3 > 0
    dl = lambda x,y: TensorDL(TensorItems(x, y), bs=16, device=torch.device('cpu'))
    quick.loss_func = CrossEntropyLossFlat(ignore_index=ignored)
    if ignored == 7: has = y != 7
    a = robustness(quick, dl(x, torch.where(has, y, ignored)), tests=['fgsm','zoom','jpeg'], n=None)
    b = robustness(quick, dl(x[has], y[has]), tests=['fgsm','zoom','jpeg'], n=None)
    assert a.n.unique().tolist() == [int(has.sum())]
    assert_table(a, b)
    with pytest.raises(ValueError, match='no samples with a label'): robustness(quick, dl(x, y*0 + ignored))

def test_labels_that_are_no_class_of_the_model(quick):
    x,y = real()
    for bad,said in ((y+1,'from 1 to 10, but there are 10 classes'), (y-1,'from -1 to 8')):
        with pytest.raises(ValueError, match=f'robustness: labels run {said}'): robustness(quick, TensorDL(TensorItems(x, bad), bs=500, device=torch.device('cpu')), n=None)

@pytest.mark.parametrize('double', [True,False])
@pytest.mark.parametrize('there', [(True,False),(False,True),(True,True)])
def test_images_and_labels_on_two_devices(there, double, monkeypatch):
    import latentreg_fastai.metrics as m, latentreg_fastai.robustness as r
    from pretend import Elsewhere,pretending
    monkeypatch.setattr(m, 'no_double', set() if double else {'meta'})
    x,y = torch.rand(6, 1, 9, 9, generator=torch.Generator().manual_seed(0)),torch.arange(6)%3
    w = torch.randn(81, 3, generator=torch.Generator().manual_seed(1))
    def table(x, y, w):
        f = lambda x: m.to_double(x.flatten(1)@w).softmax(1)
        changes = r._changes(f, r._check_tests(None), (.1,), 2, dict(steps=2, step=.1), {k: v[1][:1] for k,v in {**deformations,**corruptions}.items()})
        return [r._measured(f, change, [(x,y)], torch.Generator().manual_seed(0)) for *_,change in changes]
    want = table(x, y, w)
    with pretending(double), warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*cannot act')
        got = table(Elsewhere(x) if there[0] else x, Elsewhere(y) if there[1] else y, Elsewhere(w) if there[0] else w)
    assert np.allclose(got, want, atol=1e-5) and np.isfinite(want).all()

# Summaries and plots

def made_up(shift=0., tests=None, **levels):
    rows = [('clean','clean',0,.9), ('attack','fgsm',0,.9), ('attack','fgsm',.1,.5), ('attack','fgsm',.3,.2), ('attack','pgd',.1,.3), ('attack','unbounded_pgd',math.inf,0.), ('deformation','rotation',20,.8), ('deformation','rotation',40,.6),
            ('deformation','zoom',.5,.4), ('deformation','zoom',2,.2), ('corruption','jpeg',1,.7), ('corruption','jpeg',2,.5), ('corruption','contrast',1,.9), ('corruption','contrast',2,.7), ('corruption','blur',1,.4)]
    return pd.DataFrame([dict(kind=k, test=t, level=float(l), n=100, error=1-a+shift, accuracy=a-shift, nll=1.) for k,t,l,a in rows if tests is None or t in ('clean',*tests)])

# drawn in %: the clean accuracy stands where nothing is changed
DRAWN = {'fgsm': [(0,90),(.1,50),(.3,20)], 'pgd': [(0,90),(.1,30)], 'rotation': [(0,90),(20,80),(40,60)], 'zoom': [(.5,40),(1,90),(2,20)], 'corruptions': [(0,90),(1,200/3),(2,60)]}

def test_mean_corruption_error():
    assert mean_corruption_error(made_up()) == pytest.approx((.4 + .2 + .6)/3)         # each corruption counts the same
    with pytest.raises(ValueError, match='no corruptions'): mean_corruption_error(made_up(tests=['fgsm']))

def test_summary():
    s = robustness_summary({'a': made_up(), 'b': made_up(.1)})
    assert list(s.index) == ['a','b'] and list(s.columns) == ['clean','fgsm','pgd','unbounded_pgd','rotation','zoom','mean corruption error']
    assert np.allclose(s.loc['a'], [90,35,30,0,70,30,40]) and np.allclose(s.loc['b'], [80,25,20,-10,60,20,50])
    one = robustness_summary(made_up(tests=['rotation']))
    assert len(one) == 1 and list(one.columns) == ['clean','rotation'] and np.allclose(one, [[90,70]])

def test_summary_of_a_real_table(quick):
    t = robustness(quick, n=30, **FAST)
    s = robustness_summary(t).iloc[0]
    assert list(s.index) == ['clean',*robustness_tests()['attack'],*robustness_tests()['deformation'],'mean corruption error']
    assert s['fgsm'] == pytest.approx(100*t.accuracy[2:6].mean()) and s['mean corruption error'] == pytest.approx(100*t.error[t.kind == 'corruption'].mean()) and s['clean'] == 100*t.accuracy[0]

def test_summary_of_a_users_own_levels(quick, monkeypatch):
    # only ε = 0 is left out
    monkeypatch.setitem(R.deformations, 'shift', (lambda x,v,g: x.roll(v, 3), (-2,0,2)))
    t = robustness(quick, tests='shift', n=50)
    assert robustness_summary(t)['shift'].item() == pytest.approx(100*t.accuracy[1:].mean())

@pytest.fixture
def plots(monkeypatch):
    monkeypatch.setattr(plt, 'show', lambda *a, **k: pytest.fail('plt.show was called'))
    yield
    plt.close('all')

def drawn(ax, i=0): return ax.lines[i].get_xydata()

def test_plot_of_one_table(plots):
    rc = dict(mpl_rc())
    axs = plot_robustness(made_up())
    assert [a.get_title() for a in axs] == list(DRAWN) and dict(mpl_rc()) == rc
    for a,xy in zip(axs, DRAWN.values()):
        assert len(a.lines) == 1 and np.allclose(drawn(a), xy) and a.get_ylim() == (0,101) and 'accuracy' in a.get_ylabel() and a.get_xlabel() and a.get_legend() is None and not a.collections
    axs[0].figure.savefig(io.BytesIO())

def mpl_rc(): return {k: str(v) for k,v in plt.rcParams.items()}

def test_plot_of_several_tables(plots):
    axs = plot_robustness({'baseline': made_up(), 'other': made_up(.1)})
    for a,xy in zip(axs, DRAWN.values()): assert np.allclose(drawn(a), xy) and np.allclose(drawn(a, 1), np.array(xy) - [0,10]) and len(a.lines) == 2
    assert [t.get_text() for t in axs[0].get_legend().get_texts()] == ['baseline','other'] and axs[1].get_legend() is None

@pytest.mark.parametrize('tables', [lambda ts: {'a': ts}, lambda ts: {'a': tuple(ts)}, lambda ts: {'a': L(ts)}, lambda ts: ts])
def test_plot_of_several_runs(tables, plots):
    axs = plot_robustness(tables([made_up(), made_up(.1), made_up(.2)]))
    sd = np.std([0,10,20])
    for a,xy in zip(axs, DRAWN.values()):
        xy,band = np.array(xy),a.collections[0].get_paths()[0].vertices
        assert len(a.lines) == 1 and np.allclose(drawn(a), xy - [0,10])
        for x,y in xy: assert np.allclose([f(band[np.isclose(band[:,0], x), 1]) for f in (np.min,np.max)], [y-10-sd,y-10+sd])

def test_plot_of_one_and_several_runs(plots):
    axs = plot_robustness({'one': made_up(), 'two': [made_up(), made_up(.1)]})
    assert all(len(a.lines) == 2 and len(a.collections) == 1 for a in axs)

def test_plot_takes_axes_and_size(plots):
    _,axs = plt.subplots(1, 5)
    for given in (axs, list(axs), plt.subplots(5, 1)[1]):
        back = plot_robustness(made_up(), ax=given)
        assert all(a is b for a,b in zip(back, given)) and len(back) == 5
    one = plt.subplots()[1]
    assert plot_robustness(made_up(tests=['fgsm']), ax=one)[0] is one and len(plot_robustness(made_up(tests=['fgsm','unbounded_pgd']))) == 1
    assert plot_robustness(made_up(), figsize=(7,3))[0].figure.get_size_inches().tolist() == [7,3]
    for n in (4,6):
        with pytest.raises(ValueError, match='5 axes'): plot_robustness(made_up(), ax=plt.subplots(1, n)[1])

def test_plot_of_a_real_table(quick, plots):
    t = robustness(quick, n=30, **FAST)
    axs = plot_robustness(t)
    assert [a.get_title() for a in axs] == ['fgsm','pgd','rotation','shear','zoom','corruptions']
    assert np.allclose(drawn(axs[0])[:,1], 100*t.accuracy[t.test == 'fgsm']) and np.allclose(drawn(axs[2])[1:,1], 100*t.accuracy[t.test == 'rotation'])
    z = drawn(axs[4])
    assert z[4].tolist() == [1,100*t.accuracy[0]] and np.allclose(np.delete(z, 4, 0), t.loc[t.test == 'zoom',['level','accuracy']].values*[1,100])
    assert np.allclose(drawn(axs[5])[1:,1], [100*t.accuracy[(t.kind == 'corruption') & (t.level == i)].mean() for i in range(1,6)]) and drawn(axs[5])[0,1] == 100*t.accuracy[0]

def test_plot_of_a_users_own(quick, plots, monkeypatch):
    # clean accuracy is drawn at 0, but nobody knows where a user's own changes nothing (a stretch by .5, 1, 2 does at 1)
    monkeypatch.setitem(R.deformations, 'shift', (lambda x,v,g: x.roll(v, 3), (1,3)))
    monkeypatch.setitem(R.corruptions, 'negative', (lambda x,c,g: 1 - x, (1.,)))
    t = robustness(quick, tests=['shift','negative'], n=30)
    axs = plot_robustness(t)
    assert [a.get_title() for a in axs] == ['shift','corruptions'] and drawn(axs[0]).shape == (2,2) and np.allclose(drawn(axs[0]), [(1,100*t.accuracy[1]),(3,100*t.accuracy[2])])

def test_plot_of_tables_with_other_levels(plots):
    # must not be drawn at the first one's
    other = made_up()
    other.loc[other.level == .3, 'level'] = .2
    try: axs = plot_robustness({'a': made_up(), 'b': other})
    except ValueError as e: assert 'level' in str(e)                                   # an error that says so is as good
    else: assert np.allclose(drawn(axs[0]), DRAWN['fgsm']) and np.allclose(drawn(axs[0], 1), [(0,90),(.1,50),(.2,20)])

def test_plot_and_summary_of_parts_of_tables(plots):
    # tables of several runs are often kept as one; their row numbers then differ, and `DataFrame.equals` compares those too
    a,b = made_up(),made_up(.1)
    both = pd.concat([a, b], keys=['a','b']).reset_index(drop=True)
    parts = {'a': both[:len(a)], 'b': both[len(a):]}
    assert_table(robustness_summary(parts), robustness_summary({'a': a, 'b': b}))
    for v,w in zip(plot_robustness(parts), plot_robustness({'a': a, 'b': b})): assert np.allclose(drawn(v, 1), drawn(w, 1))

@pytest.mark.parametrize('tests', [[],['unbounded_pgd']])
def test_plot_of_nothing(tests, plots):
    with pytest.raises(ValueError, match='plot_robustness'): plot_robustness(made_up(tests=tests))

def test_measured_and_drawn_in_one_call(quick, plots):
    t = robustness(quick, tests=['fgsm','jpeg'], n=20, plot=True)
    axs = plt.gcf().axes
    assert [a.get_title() for a in axs] == ['fgsm','corruptions'] and np.allclose(drawn(axs[0])[:,1], 100*t.accuracy[t.test == 'fgsm'])
    assert_table(robustness(quick, tests=['fgsm','jpeg'], n=20), t)
    with pytest.raises(ValueError, match='nothing to draw'): robustness(quick, tests='unbounded_pgd', n=20, plot=True)

def test_other_levels_of_robustness(trained):
    usual,none,strong = (robustness(trained, tests=('gaussian_noise','contrast'), levels=l) for l in (None, dict(gaussian_noise=(0.,)*5), dict(gaussian_noise=(0.,1.,5.))))
    noise = lambda t: t[t.test == 'gaussian_noise']
    assert noise(none).error.tolist() == [none.error[0]]*5 and noise(strong).level.tolist() == [1,2,3] and noise(strong).error.iloc[2] > noise(usual).error.max()
    assert usual[usual.test == 'contrast'].error.tolist() == strong[strong.test == 'contrast'].error.tolist()
    with pytest.raises(ValueError, match="not 'fgsm'"): robustness(trained, levels=dict(fgsm=(1,)))
