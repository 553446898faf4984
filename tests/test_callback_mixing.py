"Mixing rows and targets: every kind of target, loss and option against mixing by hand; the layers that are mixed."
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
        y = y_[0]
        other = torch.stack([y[(i-cb.shift) % len(y)] for i in range(len(y))])
        loss = want(l.model(mixed(l.x, lam, cb.shift)), y, other, lam)
        kept.append((loss.detach(), grads(loss, l.model)))
    def after(l):
        loss,gs = kept.pop()
        torch.testing.assert_close(l.loss.detach().as_subclass(Tensor), loss, rtol=1e-4, atol=1e-6)
        as_by_hand(l, loss, gs)
        seen.append((cb.shift, str(cb.site), float(np.mean(np.asarray(cb.lam)))))
    y_,kept = [None],[]
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
    'one-hot, weights':     (F.one_hot(INTS).float(), nn.CrossEntropyLoss(weight=torch.tensor([.01,.02,.05])), 3, lambda p,y,y2,lam: sum(-(torch.tensor([.01,.02,.05])[c]*(l*a[c]+(1-l)*b[c])*q[c]) for q,a,b,l in zip(p.log_softmax(1), y, y2, lam) for c in range(3))/len(p)),
    'one-hot, focal':       (F.one_hot(INTS).float(), FocalLossFlat(flatten=False), 3, lambda p,y,y2,lam: sum((1-(-e).exp())**2*e for e in [-sum((l*a[c]+(1-l)*b[c])*q[c] for c in range(3)) for q,a,b,l in zip(p.log_softmax(1), y, y2, lam)])/len(p)),
    'several labels, weighed': ((torch.rand(24,3) > .5).float(), BCEWithLogitsLossFlat(pos_weight=torch.tensor([1.,2.,5.])), 3, lambda p,y,y2,lam: sum(-(w*t*torch.sigmoid(v).log() + (1-t)*torch.sigmoid(-v).log()) for q,a,b,l in zip(p, y, y2, lam) for v,t,w in zip(q, l*a+(1-l)*b, (1.,2.,5.)))/p.numel()),
    'regression, L1, sum':  (torch.randn(24), L1LossFlat(reduction='sum'), 1, lambda p,y,y2,lam: sum(abs(v-l*a-(1-l)*b) for v,a,b,l in zip(p[:,0], y, y2, lam))),
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
    pixels = lambda p,t: F.cross_entropy(p, t, reduction='none').mean((1,2))
    for per_item in (False,True):
        net = nn.Sequential(nn.Conv2d(1,4,3,padding=1), nn.ReLU(), nn.Conv2d(4,2,1))
        dls = tensor_dls((data()[0],y), (data()[0],y), bs=8, vocab=['a','b'], device='cpu')
        seen = by_hand(new_learner(model=net, loss_func=CrossEntropyLossFlat(axis=1), metrics=[], dls=dls), ManifoldMixup(layers=[], per_item=per_item), lambda p,a,b,lam: (lam*pixels(p, a) + (1-lam)*pixels(p, b)).mean(), steps=6)
        assert len(seen) == 6
        learn = new_learner(model=nn.Sequential(nn.Conv2d(1,4,3,padding=1), nn.ReLU(), nn.Conv2d(4,2,1)), loss_func=CrossEntropyLossFlat(axis=1), metrics=[],
                            dls=tensor_dls((data()[0],y), (data()[0],y), bs=8, vocab=['a','b'], device='cpu'))
        learn.fit(2, 1e-2, cbs=ManifoldMixup(per_item=per_item))
        assert math.isfinite(learn.recorder.losses[-1])

# Losses and their divisors: each against a loop over samples that says what the loss is

W3 = torch.tensor([.01,.02,.05])
SKIP = torch.where(torch.arange(24)%5 == 1, -100, INTS)
def nll(p, y): return -(p[y] - p.exp().sum().log())
def smooth(p, y, w, eps=.2): return (1-eps)*w[y]*nll(p, y) + eps/len(p)*sum(w[c]*nll(p, c) for c in range(len(p)))
def kept(f, skip=-100): return lambda p,y: 0*p.sum() if y == skip else f(p, y)
def focal(p, y, w): ce = w[y]*nll(p, y); return (1-(-ce).exp())**2*ce
one,ones = lambda y: 1., torch.ones(3)

class PerSample(nn.Module):
    "A loss of one's own: twice the cross-entropy, divided by the number of samples and one"
    def __init__(self): super().__init__(); self.reduction = 'mean'
    def forward(self, p, y): l = 2*F.cross_entropy(p, y, reduction='none'); return l if self.reduction == 'none' else l.sum()/(len(l)+1)

def own(p, y, reduction='mean'): l = F.cross_entropy(p, y, reduction='none'); return l if reduction == 'none' else l.mean()

# the loss, the labels, ℓ of one sample times its weight, the sample's part of the divisor (one number: the divisor)
LOSSES = {
    'plain':              (CrossEntropyLossFlat(), INTS, nll, one),
    'weights':            (CrossEntropyLossFlat(weight=W3), INTS, lambda p,y: W3[y]*nll(p, y), lambda y: W3[y]),
    'weights, all .01':   (CrossEntropyLossFlat(weight=torch.full((3,), .01)), INTS, lambda p,y: .01*nll(p, y), lambda y: .01),
    'weights, torch':     (nn.CrossEntropyLoss(weight=W3), INTS, lambda p,y: W3[y]*nll(p, y), lambda y: W3[y]),
    'ignored':            (CrossEntropyLossFlat(), SKIP, kept(nll), lambda y: float(y >= 0)),
    'ignored 255':        (nn.CrossEntropyLoss(ignore_index=255), SKIP.where(SKIP >= 0, 255), kept(nll, 255), lambda y: float(y < 255)),
    'ignored 0, weights': (nn.CrossEntropyLoss(W3, ignore_index=0), INTS, kept(lambda p,y: W3[y]*nll(p, y), 0), lambda y: W3[y]*(y != 0)),
    'smoothed':           (nn.CrossEntropyLoss(label_smoothing=.2), INTS, lambda p,y: smooth(p, y, ones), one),
    'all of these':       (CrossEntropyLossFlat(weight=W3, label_smoothing=.2), SKIP, kept(lambda p,y: smooth(p, y, W3)), lambda y: W3[y] if y >= 0 else 0.),
    "fastai's smoothing": (LabelSmoothingCrossEntropyFlat(.2), INTS, lambda p,y: smooth(p, y, ones), one),
    'focal':              (FocalLossFlat(), INTS, lambda p,y: focal(p, y, ones), one),
    'focal, weights':     (FocalLossFlat(weight=10*W3), INTS, lambda p,y: focal(p, y, 10*W3), one),
    'sum':                (nn.CrossEntropyLoss(reduction='sum'), INTS, nll, 1.),
    'sum, weights':       (CrossEntropyLossFlat(weight=W3, reduction='sum'), SKIP, kept(lambda p,y: W3[y]*nll(p, y)), 1.),
    'function':           (F.cross_entropy, SKIP, kept(nll), lambda y: float(y >= 0)),
    'partial, weights':   (partial(F.cross_entropy, weight=W3), INTS, lambda p,y: W3[y]*nll(p, y), lambda y: W3[y]),
    'partial, sum':       (partial(F.cross_entropy, reduction='sum'), INTS, nll, 1.),
    'margin':             (nn.MultiMarginLoss(weight=W3), INTS, lambda p,y: sum(W3[y]*(1-p[y]+p[c]).clamp_min(0) for c in range(3) if c != y)/3, one),
    "one's own module":   (PerSample(), INTS, lambda p,y: 2*nll(p, y), 9.),
    "one's own function": (own, INTS, nll, one),
    'floating numbers':   (LabelSmoothingCrossEntropy(.2), INTS.float(), lambda p,y: smooth(p, int(y), ones), one),
    'counts':             (nn.MSELoss(), INTS*7, None, one),
}

def loss_by_loop(pred, y, other, lam, ell, part):
    total = lambda ys: part if isinstance(part, float) else sum(part(y) for y in ys.tolist())
    of = lambda ys,share: sum(s*ell(p, k if isinstance(k, float) else int(k)) for p,k,s in zip(pred, ys.tolist(), share))/total(ys)
    return of(y, lam) + of(other, 1-lam)

@pytest.mark.parametrize('per_item', [False,True])
@pytest.mark.parametrize('case', LOSSES)
def test_the_loss_of_mixed_labels(case, per_item):
    loss,y,ell,part = LOSSES[case]
    n_out = 1 if case == 'counts' else 3
    if case == 'counts': loss,ell = (lambda p,y,reduction='mean': F.mse_loss(p[:,0], y.float(), reduction=reduction)),(lambda p,y: (p[0]-y)**2)
    assert len(by_hand(linear_learner(y, loss, n_out), ManifoldMixup(alpha=1., per_item=per_item), lambda *a: loss_by_loop(*a, ell, part), steps=9)) == 9

@pytest.mark.parametrize('case', [c for c in LOSSES if c not in ('counts','floating numbers')])
def test_equal_shares_mix_the_reduced_losses(case):
    "A λ for each sample, all equal, is what one λ a batch gives"
    loss,y,*_ = LOSSES[case]
    class Same(ManifoldMixup):
        def draw(self, n, alpha=None): self.shift,self.lam = 3,torch.full((n,), .7) if self.per_item else .7
    runs = []
    for per_item in (False,True):
        learn = linear_learner(y, loss)
        learn.fit(1, 1e-2, cbs=Same(layers=[], per_item=per_item))
        runs.append([*learn.recorder.losses, *[w.flatten() for w in weights(learn).values()]])
    for a,b in zip(*runs): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize('per_item', [False,True])
def test_masks_with_ignored_pixels_and_class_weights(per_item):
    y = torch.randint(0, 2, (24,4,6), generator=torch.Generator().manual_seed(0))
    y[:,0] = 255; y[3] = 255                              # a row of each mask, and a whole mask
    x,w = torch.randn(24,1,4,6),torch.tensor([.3,2.])
    learn = new_learner(model=nn.Conv2d(1,2,1), loss_func=CrossEntropyLossFlat(axis=1, weight=w, ignore_index=255), metrics=[], dls=tensor_dls((x,y), (x,y), bs=8, vocab=['a','b'], device='cpu'))
    def want(pred, a, b, lam):
        tops,bottoms = [0.,0.],[0.,0.]
        for s,(masks,share) in enumerate(((a,lam), (b,1-lam))):
            for p,mask,l in zip(pred, masks, share):
                for i,j in itertools.product(range(4), range(6)):
                    if mask[i,j] < 255: tops[s] += l*w[mask[i,j]]*nll(p[:,i,j], mask[i,j]); bottoms[s] += w[mask[i,j]]
        return tops[0]/bottoms[0] + tops[1]/bottoms[1]
    assert len(by_hand(learn, ManifoldMixup(layers=[], per_item=per_item), want, steps=3)) == 3

@pytest.mark.parametrize('per_item', [False,True])
def test_several_targets(per_item):
    "Two labels and a number: the labels' losses are mixed, the number itself is; with a λ for each sample, class weights for one of the two would be a second divisor"
    W = torch.ones(3) if per_item else W3
    class Three(nn.Module):
        def __init__(self): super().__init__(); self.body = nn.Linear(6, 7)
        def forward(self, x): z = self.body(x); return z[:,:3],z[:,3:5],z[:,5:6]
    def loss(p, a, b, t, reduction='mean'):
        return F.cross_entropy(p[0], a, weight=W, reduction=reduction) + F.cross_entropy(p[1], b, reduction=reduction) + F.mse_loss(p[2][:,0], t, reduction=reduction)
    x,a,b,t = torch.randn(24,6),INTS,torch.arange(24)%2,torch.randn(24)
    learn = new_learner(model=Three(), dls=tensor_dls(*[TensorItems(x, a, b, t, n_inp=1)]*2, bs=8, device='cpu'), loss_func=loss, metrics=[])
    cb,seen,kept = ManifoldMixup(layers=[], per_item=per_item, alpha=1.),[],[]
    def check(l):
        ys,pred = kept.pop(),l.pred
        lam = torch.as_tensor(cb.lam).float().expand(8)
        others = [[y[(i-cb.shift)%8] for i in range(8)] for y in ys]
        div = sum(W[k] for k in ys[0])
        want = 0.
        for i in range(8):
            want += (lam[i]*W[ys[0][i]]*nll(pred[0][i], ys[0][i]) + (1-lam[i])*W[others[0][i]]*nll(pred[0][i], others[0][i]))/div
            want += (lam[i]*nll(pred[1][i], ys[1][i]) + (1-lam[i])*nll(pred[1][i], others[1][i]))/8
            want += (pred[2][i,0] - lam[i]*ys[2][i] - (1-lam[i])*others[2][i])**2/8
        seen.append((l.loss.item(), want.item()))
    learn.fit(1, 1e-3, cbs=[Probe(order=-9, run_valid=False, before_batch=lambda l: kept.append([y.clone() for y in l.yb])), cb, Probe(order=20, run_valid=False, after_loss=check)])
    assert len(seen) == 3
    for got,want in seen: assert abs(got-want) < 1e-5*abs(want)

def test_numbers_of_classes_are_not_mixed():
    "Floating class numbers: a vocabulary tells, and the two losses are mixed; without one, and with a loss that tells nothing, they are numbers"
    cls = lambda p,y: F.cross_entropy(p, y.long())
    for shape in ((24,), (24,1)):
        y = INTS.float().view(shape)
        flat = lambda p,y: cls(p, y.view(-1))
        for vocab,seen in ((['a','b','c'],True), (None,False)):
            x,ys = torch.randn(24,6),[]
            learn = new_learner(model=nn.Linear(6,3), loss_func=flat, metrics=[], dls=tensor_dls((x,y), (x,y), vocab=vocab, bs=8, device='cpu'))
            learn.fit(1, cbs=[ManifoldMixup(layers=[], alpha=1.), Probe(order=20, run_valid=False, before_batch=lambda l: ys.append(l.y))])
            assert all((y == y.round()).all() for y in ys) is seen
    raises(['ManifoldMixup', 'reduction'], lambda: new_learner(model=nn.Linear(6,3), loss_func=flat, metrics=[], dls=tensor_dls((x,y), (x,y), vocab=['a','b','c'], bs=8, device='cpu')).fit(1, cbs=ManifoldMixup(layers=[], per_item=True)))

def test_losses_that_cannot_be_weighed():
    "Two divisors, and a `reduction` that is not looked at"
    two = LabelSmoothingCrossEntropyFlat(weight=W3)
    both = lambda p,y,reduction='mean': F.cross_entropy(p, y, weight=W3, reduction=reduction) + F.cross_entropy(p, y, reduction=reduction)
    for loss in (two, both):
        raises(['ManifoldMixup', 'per_item=True', 'one divisor', 'per_item=False'], lambda: linear_learner(INTS, loss).fit(1, cbs=ManifoldMixup(per_item=True)))
        linear_learner(INTS, loss).fit(1, cbs=ManifoldMixup())
    class Deaf(nn.Module):
        reduction = 'mean'
        def forward(self, p, y): return F.cross_entropy(p, y)
    raises(['ManifoldMixup', "reduction='none'", 'Deaf', '() for 8 samples'], lambda: linear_learner(INTS, Deaf()).fit(1, cbs=ManifoldMixup(per_item=True)))
    learn = linear_learner(INTS, CrossEntropyLossFlat())
    raises(['ManifoldMixup'], lambda: learn.fit(1, cbs=[ManifoldMixup(per_item=True), Probe(order=0, before_batch=lambda l: setattr(l, 'loss_func', Deaf()))]))

def test_losses_that_are_zero():
    "Nothing to divide by: what all samples lose is 0, and so is the mixed loss; where all labels are ignored it is NaN, as the loss itself"
    for y,want in ((INTS, 0.), (torch.full((24,), -100), NAN)):
        loss = (lambda p,y,reduction='mean': 0*F.cross_entropy(p, y, reduction=reduction)) if want == 0 else F.cross_entropy
        seen = []
        linear_learner(y, loss).fit(1, 1e-3, cbs=[ManifoldMixup(per_item=True), Probe(order=20, run_valid=False, after_loss=lambda l: seen.append(l.loss.item()))])
        assert len(seen) == 3 and all(map(math.isnan, seen)) if math.isnan(want) else seen == [0.]*3

def test_nothing_to_learn_above():
    learn = new_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.ReLU(), nn.Linear(8,3)))
    for p in learn.model[3].parameters(): p.requires_grad_(False)
    refused(['ManifoldMixup', 'stop_grad=True', 'no weight above 1 is trained'], learn, ManifoldMixup(layers='1', input_mixup=False, stop_grad=True))

def test_per_item_needs_a_reduction():
    plain = lambda p,y: F.cross_entropy(p, y)
    raises(['ManifoldMixup', 'per_item=True', 'reduction'], lambda: new_learner(loss_func=plain).fit(1, cbs=ManifoldMixup(per_item=True)))
    new_learner(loss_func=plain).fit(1, cbs=ManifoldMixup())
    new_learner(loss_func=F.cross_entropy).fit(1, cbs=ManifoldMixup(per_item=True))

def test_integers_cannot_be_mixed():
    class Bag(nn.Module):
        def __init__(self): super().__init__(); self.ids,self.emb,self.fc = nn.Identity(),nn.Embedding(9,4),nn.Linear(4,3)
        def forward(self, x): return self.fc(self.emb(self.ids(x)).mean(1))
    x = torch.randint(0, 9, (24,5))
    dls = tensor_dls((x,data()[1]), (x,data()[1]), bs=8, device='cpu')
    raises(['ManifoldMixup', 'ids', 'int64', 'cannot be mixed'], lambda: new_learner(model=Bag(), dls=dls).fit(1, cbs=ManifoldMixup(layers='ids', input_mixup=False)))
    assert [str(s) for s in mixing_sites(Bag(), (x,))] == ['emb']

def test_targets_that_are_no_tensors():
    learn = new_learner(loss_func=lambda p,y: p.square().mean(), metrics=[])
    raises(['ManifoldMixup', 'targets must be tensors'], lambda: learn.fit(1, cbs=[ManifoldMixup(), Probe(order=0, before_batch=lambda l: setattr(l, 'yb', (['a','b'],)))]), TypeError)

def test_inputs_of_several_parts():
    "Every floating tensor of a tuple of inputs is mixed, with the same partner"
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.a,self.b = nn.Linear(4,6),nn.Linear(3,6); self.out = nn.Linear(6,3)
        def forward(self, a, b): return self.out((self.a(a) + self.b(b)).relu())
    a,b,y = torch.randn(24,4),torch.randn(24,3),data()[1]
    seen = []
    learn = new_learner(model=Two(), dls=tensor_dls((a,b,y), (a,b,y), bs=8, device='cpu'))
    learn.model.a.register_forward_pre_hook(lambda m,i: seen.append(i[0]))
    learn.model.b.register_forward_pre_hook(lambda m,i: seen.append(i[0]))
    cb = ManifoldMixup(layers=[])
    def check(l):
        for got,x in zip(seen, l.xb): torch.testing.assert_close(got, cb.mix(x))
        seen.clear()
    learn.fit(1, cbs=[cb, Probe(after_loss=check, run_valid=False), Probe(order=-9, before_batch=lambda l: seen.clear())])
    assert [str(s) for s in mixing_sites(Two(), (a[:2],b[:2]))] == ['input']

# Which layers and partners

def test_layers_and_partners_are_drawn_evenly():
    cb = ManifoldMixup(layers=['1.0','1'])
    learn,drawn,shifts = new_learner(),Counter(),Counter()
    learn.model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64,4), nn.ReLU()), nn.Linear(4,3))
    learn.fit(100, 1e-3, cbs=[cb, Probe(run_valid=False, after_pred=lambda l: (drawn.update([str(cb.site)]), shifts.update([cb.shift])))])
    assert set(drawn) == {'input','1.0','1'} and min(drawn.values()) > 70 and set(shifts) == set(range(1,8)) and min(shifts.values()) > 20

@pytest.mark.parametrize('layers,want', [(0,['0']), (lambda m: m[2],['2']), ('module',['2']), (-2,['4']), (['0','2'],['0','2'])], ids=['index','function','module','from the end','list'])
def test_a_layer_is_one_layer(layers, want):
    "The first child, or a container given as a module, is itself a layer, not nothing and not its children"
    learn = new_learner()
    cb,sites = ManifoldMixup(layers=learn.model[2] if layers == 'module' else layers, input_mixup=False),set()
    learn.fit(6, 1e-2, cbs=[cb, Probe(after_pred=lambda l: sites.add(str(cb.site)))])
    assert sorted(sites) == want

def test_a_batch_of_one_is_left_alone():
    ys = []
    for cb in (None, ManifoldMixup()):
        set_seed(0)
        learn = new_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(64,3)), dls=tensor_dls(data(), data(12), bs=1, device='cpu'))
        learn.fit(1, 1e-2, cbs=cb)
        ys.append(weights(learn))
    assert same(*ys)

# Beside others that mix

def test_beside_fastais_mixup(): raises(['ManifoldMixup', 'MixUp', 'take one'], lambda: new_learner().fit(1, cbs=[MixUp(), ManifoldMixup()]))

def test_mixers_beside_each_other():
    for one,two in ((VarMixup(VAE), ManifoldMixup()), (VarMixup(VAE), MixUp()), (SemiSupervisedMixup(UNLABELED), VarMixup(VAE)), (SemiSupervisedMixup(UNLABELED), ManifoldMixup()), (SemiSupervisedMixup(UNLABELED), CutMix())):
        for cbs in ([one,two],[two,one]):
            learn = new_learner(); loss = learn.loss_func
            said = raises(['take one of the two'], lambda: learn.fit(1, 1e-2, cbs=cbs))
            assert type(one).__name__ in said and type(two).__name__ in said and learn.loss_func is loss and not hooks(learn.model)

# What a mixer can forget

def mixer(base=MixingCallback, **methods): return type('Mine', (base,), methods)()

@pytest.mark.parametrize('methods,said', [
    (dict(before_batch=lambda self: self.begin_mixing() and None), 'targets were mixed, and nothing else'),
    (dict(before_batch=lambda self: (self.draw(len(self.x)), setattr(self.learn, 'xb', (self.mix(self.x),)), None)[-1]), 'targets were not'),
    (dict(before_batch=lambda self: (self.iter%2 == 0 and self.begin_mixing(), setattr(self.learn, 'xb', (self.mix(self.x),)), None)[-1]), 'call begin_mixing()')], ids=['targets alone','inputs alone','every other batch'])
def test_inputs_and_targets_are_mixed_together(methods, said):
    raises(['Mine', said], lambda: new_learner().fit(1, 1e-3, cbs=mixer(**methods)))

@pytest.mark.parametrize('f', [lambda self, z: None, lambda self, z: z[:3], lambda self, z: 3.], ids=['nothing','fewer rows','a number'])
def test_mix_features_returns_the_mixed_states(f):
    raises(['Mine', '`mix_features`', 'must return'], lambda: new_learner().fit(1, 1e-3, cbs=mixer(LayerMixing, mix_features=f)), TypeError)

def test_states_that_are_not_mixed():
    raises(['Mine', 'targets were mixed'], lambda: new_learner().fit(1, 1e-3, cbs=mixer(LayerMixing, mix_features=lambda self, z: 2*z)))
    m = mixer(LayerMixing, mix=lambda self, t: None)
    raises(['Mine'], lambda: new_learner().fit(1, 1e-3, cbs=m), (TypeError,ValueError,AttributeError))

def test_a_batch_of_one_is_left_alone():
    class Mine(MixingCallback):
        def before_batch(self):
            if self.begin_mixing(): self.learn.xb = (self.mix(self.x),)
    losses = []
    for cbs in ([], [Mine()]):
        set_seed(3)
        learn = new_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), dls=tensor_dls(data(3), data(3), bs=1, device='cpu'))
        learn.fit(1, 1e-3, cbs=cbs)
        losses.append(weights(learn))
    assert same(*losses)

def test_mix_takes_floating_numbers():
    for what,got in ((lambda self: self.mix(self.y), 'torch.int64'), (lambda self: self.mix({'x': self.x}), 'dict'), (lambda self: self.mix((self.x,self.x)), 'tuple')):
        raises(['Mine', '`mix` takes', got], lambda: new_learner().fit(1, 1e-3, cbs=mixer(before_batch=lambda self: self.begin_mixing() and what(self) and None)), TypeError)

@pytest.mark.parametrize('cb', [ManifoldMixup, lambda: ManifoldMixup(layers=[]), lambda: VarMixup(VAE), lambda: mixer()])
def test_a_gan_is_not_mixed(cb): raises(['GANMixup'], lambda: gan_learner().fit(1, cbs=cb()), TypeError)
