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
