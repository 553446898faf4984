"Manifold Mixup against mixing by hand, for every kind of target, loss and option."
import pytest
from common import *

def linear_learner(y, loss_func, n_out=3, **kwargs):
    "A network that is linear up to its output: mixing at any layer is mixing the inputs"
    set_seed(0)
    x = torch.randn(len(y), 6)
    model = nn.Sequential(nn.Linear(6,5), nn.Linear(5,4), nn.Linear(4,n_out))
    return new_learner(model=model, dls=tensor_dls((x,y), (x,y), bs=8, device='cpu'), loss_func=loss_func, metrics=[], **kwargs)

def by_hand(learn, cb, want, steps=30):
    "Fit with `cb`, comparing the loss of each batch and its gradient with `want(pred, y, y_partner, λ)`, pred being that of mixed inputs, λ one a row"
    seen = []
    def before(l):
        lam = torch.as_tensor(cb.lam).float().expand(len(l.x)) if not cb.per_item else cb.lam.float()
        partner = torch.stack([l.x[(i-cb.shift) % len(l.x)] for i in range(len(l.x))])   # no roll, no lerp
        mixed = torch.stack([a*p + (1-a)*q for a,p,q in zip(lam, l.x, partner)])
        y = y_[0]
        other = torch.stack([y[(i-cb.shift) % len(y)] for i in range(len(y))])
        loss = want(l.model(mixed), y, other, lam)
        grads.append((loss.detach(), torch.autograd.grad(loss, list(l.model.parameters()))))
    def after(l):
        loss,gs = grads.pop()
        torch.testing.assert_close(l.loss.detach().as_subclass(Tensor), loss, rtol=1e-4, atol=1e-6)
        for p,g in zip(l.model.parameters(), gs): torch.testing.assert_close(p.grad, g, rtol=1e-3, atol=1e-5)
        seen.append((cb.shift, str(cb._site), float(np.mean(np.asarray(cb.lam)))))
    y_,grads = [None],[]
    keep = Probe(order=-9, run_valid=False, before_batch=lambda l: y_.__setitem__(0, l.y.clone()))
    learn.fit(steps//3, 1e-3, cbs=[keep, cb, Probe(order=20, run_valid=False, before_batch=before), Probe(order=20, run_valid=False, after_backward=after)])
    return seen

INTS = torch.arange(24) % 3
ce = lambda p,y,y2,lam: (lam*F.cross_entropy(p, y, reduction='none') + (1-lam)*F.cross_entropy(p, y2, reduction='none')).mean()
bce = lambda p,y,y2,lam: F.binary_cross_entropy_with_logits(p, lam[:,None]*y + (1-lam[:,None])*y2)
mse = lambda p,y,y2,lam: F.mse_loss(p.view(-1), lam*y + (1-lam)*y2)
soft = lambda p,y,y2,lam: F.cross_entropy(p, lam[:,None]*y + (1-lam[:,None])*y2)
TARGETS = {
    'classes':              (INTS, CrossEntropyLossFlat(), 3, ce),
    'classes, torch':       (INTS, nn.CrossEntropyLoss(), 3, ce),
    'classes, a function':  (INTS, F.cross_entropy, 3, ce),
    'classes, smoothed':    (INTS, LabelSmoothingCrossEntropy(.1), 3, lambda p,y,y2,lam: (lam*LabelSmoothingCrossEntropy(.1,reduction='none')(p,y) + (1-lam)*LabelSmoothingCrossEntropy(.1,reduction='none')(p,y2)).mean()),
    'classes, sum':         (INTS, nn.CrossEntropyLoss(reduction='sum'), 3, lambda *a: 8*ce(*a)),
    'one-hot':              (F.one_hot(INTS).float(), nn.CrossEntropyLoss(), 3, soft),
    'several labels':       ((torch.rand(24,3) > .5).float(), BCEWithLogitsLossFlat(), 3, bce),
    'regression':           (torch.randn(24), MSELossFlat(), 1, mse),
}

@pytest.mark.parametrize('per_item', [False,True])
@pytest.mark.parametrize('case', TARGETS)
def test_by_hand(case, per_item):
    y,loss,n_out,want = TARGETS[case]
    seen = by_hand(linear_learner(y, loss, n_out), ManifoldMixup(alpha=1., per_item=per_item), want)
    shifts,layers,lams = map(set, zip(*seen))
    assert layers == {'input','0','1'} and shifts <= set(range(1,8)) and len(shifts) > 3
    assert all(.5 <= l <= 1 for l in lams) and len(lams) == len(seen)

def test_a_loss_without_reduction():
    own = lambda p,y: F.cross_entropy(p, y)
    by_hand(linear_learner(INTS, own), ManifoldMixup(), ce)

def test_class_weights():
    "One λ a batch: the loss of both targets, each as the loss function weighs it"
    w = nn.CrossEntropyLoss(weight=torch.tensor([1.,2.,3.]))
    by_hand(linear_learner(INTS, w), ManifoldMixup(), lambda p,y,y2,lam: lam[0]*w(p, y) + (1-lam[0])*w(p, y2))

def test_masks():
    "Segmentation: integer masks, a loss over pixels"
    y = torch.randint(0, 2, (24,8,8))
    for per_item in (False,True):
        learn = new_learner(model=nn.Sequential(nn.Conv2d(1,4,3,padding=1), nn.ReLU(), nn.Conv2d(4,2,1)), loss_func=CrossEntropyLossFlat(axis=1), metrics=[],
                            dls=tensor_dls((data()[0],y), (data()[0],y), bs=8, vocab=['a','b'], device='cpu'))
        learn.fit(2, 1e-2, cbs=ManifoldMixup(per_item=per_item))
        assert math.isfinite(learn.recorder.losses[-1])

def test_a_hidden_state_is_mixed_where_it_says():
    "In a network that is not linear: the output is that of the mixed state of the drawn layer"
    learn,cb,checked = new_learner(model=nn.Sequential(nn.Flatten(), *[nn.Sequential(nn.Linear(i,8), nn.Tanh()) for i in (64,8)], nn.Linear(8,3))),ManifoldMixup(),set()
    def check(l):
        z = l.x
        with torch.no_grad():
            if str(cb._site) == 'input': z = cb.lam*z + (1-cb.lam)*torch.cat([z[-cb.shift:], z[:-cb.shift]])
            for n,m in l.model.named_children():
                z = m(z)
                if n == str(cb._site): z = cb.lam*z + (1-cb.lam)*torch.cat([z[-cb.shift:], z[:-cb.shift]])
        torch.testing.assert_close(z, l.pred.detach())
        checked.add(str(cb._site))
    learn.fit(5, 1e-2, cbs=[cb, Probe(after_loss=check, run_valid=False)])
    assert checked == {'input','1','2'}

def test_gradients_pass_the_mixed_layer_unless_blocked():
    for stop,want in ((False,True),(True,False)):
        learn,reached = new_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.Tanh(), nn.Linear(8,3))),[]
        learn.fit(1, 1e-2, cbs=[ManifoldMixup(layers='2', input_mixup=False, stop_grad=stop), Probe(run_valid=False, after_backward=lambda l: reached.append(l.model[1].weight.grad is not None))])
        assert set(reached) == {want}

def test_alpha_is_that_of_the_beta_distribution():
    "max(λ, 1−λ) of Beta(α, α): the mean and variance against numbers from scipy"
    from scipy.stats import beta, kstest
    for alpha in (.3,1.,2.):
        cb = ManifoldMixup(alpha, per_item=True)
        cb.rng = np.random.default_rng(0)
        cb.draw(20_000)
        folded = lambda v: beta(alpha, alpha).cdf(v) - beta(alpha, alpha).cdf(1-v)
        assert kstest(cb.lam.numpy(), folded).pvalue > .01

def test_layers_and_partners_are_drawn_evenly():
    cb = ManifoldMixup(layers=['1.0','1'])
    learn,drawn,shifts = new_learner(),Counter(),Counter()
    learn.model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64,4), nn.ReLU()), nn.Linear(4,3))
    learn.fit(100, 1e-3, cbs=[cb, Probe(run_valid=False, after_pred=lambda l: (drawn.update([str(cb._site)]), shifts.update([cb.shift])))])
    assert set(drawn) == {'input','1.0','1'} and min(drawn.values()) > 70 and set(shifts) == set(range(1,8)) and min(shifts.values()) > 20

def test_a_batch_of_one_is_left_alone():
    ys = []
    for cb in (None, ManifoldMixup()):
        set_seed(0)
        learn = new_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(64,3)), dls=tensor_dls(data(), data(12), bs=1, device='cpu'))
        learn.fit(1, 1e-2, cbs=cb)
        ys.append(weights(learn))
    assert same(*ys)

def test_input_mixup_alone():
    cb,sites = ManifoldMixup(layers=[]),set()
    new_learner().fit(2, 1e-2, cbs=[cb, Probe(after_pred=lambda l: sites.add(str(cb._site)))])
    assert sites == {'input'}

def test_learn_loss_is_the_mixed_loss():
    learn,cb,both = new_learner(),ManifoldMixup(alpha=1.),[]
    def look(l): both.append((l.loss.item(), l.loss_grad.item(), (cb.lam*F.cross_entropy(l.pred, l.y) + (1-cb.lam)*F.cross_entropy(l.pred, l.y.roll(cb.shift))).item()))
    learn.fit(2, 1e-2, cbs=[cb, Probe(after_loss=look, run_valid=False, order=5)])
    for logged,graded,want in both: close([logged,graded], [want]*2, eps=1e-5)

@pytest.mark.parametrize('layers,want', [(0,['0']), (lambda m: m[2],['2']), ('module',['2']), (-2,['4']), (['0','2'],['0','2'])], ids=['index','function','module','from the end','list'])
def test_a_layer_is_one_layer(layers, want):
    "The first child, or a container given as a module, is itself a layer, not nothing and not its children"
    learn = new_learner()
    cb,sites = ManifoldMixup(layers=learn.model[2] if layers == 'module' else layers, input_mixup=False),set()
    learn.fit(6, 1e-2, cbs=[cb, Probe(after_pred=lambda l: sites.add(str(cb._site)))])
    assert sorted(sites) == want
