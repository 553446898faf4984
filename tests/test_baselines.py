"What the methods are compared with: centre loss, disturbed labels and L1 of weights."
import pytest
from common import *

@pytest.mark.parametrize('layer,at', [(None,3), ('1',2)], ids=str)
@pytest.mark.parametrize('lr', [.5,1.,.1])
def test_centres_follow_as_in_their_paper(lr, layer, at):
    "Wen et al., Eqs. 2 to 4, sample by sample"
    cb,c,terms = CenterLoss(.3, lr, layer=layer),torch.zeros(3, 8),[]
    def check(l, x, y):
        m = copy_of(l); z = m[:at](x)
        pull = sum((z[i] - c[y[i]].clone()).square().sum() for i in range(8))/8/2
        as_by_hand(l, F.cross_entropy(m(x), y) + .3*pull, m)
        terms.append(pull.item())
        for k in range(3):
            delta,n = torch.zeros(8),0
            for i in range(8):
                if y[i] == k: delta += c[k] - z[i].detach(); n += 1
            c[k] -= lr*delta/(1 + n)
    def follow(l): torch.testing.assert_close(cb.centers, c); assert not cb.centers.requires_grad
    cbs,_ = step(check)
    learn = new_learner(model=tanh_net())
    learn.fit(3, 1e-2, cbs=[cb,*cbs,Probe(run_valid=False, after_batch=follow)])
    close(learn.recorder.terms['center_loss'], terms, eps=1e-5)
    assert len(terms) == 9 and learn.recorder.metric_names[4] == 'center_loss'

def test_centres_of_absent_classes_stay():
    x,y = data()
    cb = CenterLoss(n_classes=7)
    new_learner(model=tanh_net(), dls=tensor_dls((x,y*2), (x,y*2), bs=8, vocab=range(5), device='cpu'), loss_func=lambda p,y: F.cross_entropy(p, y//2), metrics=[]).fit(1, 1e-2, cbs=cb)
    assert cb.centers.shape == (7,8) and (cb.centers != 0).any(1).tolist() == [True,False,True,False,True,False,False]

@pytest.mark.parametrize('p,K', [(.1,10), (.5,3), (1.,4), (.3,2)])
def test_labels_are_disturbed_at_the_rate_and_evenly(p, K):
    "p·(K−1)/K of the labels change: a label may be drawn again. Whatever a label was, the new one is any other alike"
    from scipy.stats import binomtest, chisquare
    set_seed(0)
    y = torch.arange(6000)%K
    dls = tensor_dls((torch.randn(6000,2),y), (torch.randn(50,2),y[:50]), bs=500, device='cpu')
    old,new = [],[]
    learn = new_learner(model=nn.Linear(2,K), dls=dls)
    def after(l):
        new.append(l.y.clone())
        close(l.loss.item(), F.cross_entropy(l.pred, l.y).item(), eps=1e-6)
    learn.fit(4, 1e-3, cbs=[DisturbLabel(p), Probe(order=-9, run_valid=False, before_batch=lambda l: old.append(l.y.clone())), Probe(run_valid=False, after_loss=after)])
    old,new = torch.cat(old).as_subclass(Tensor),torch.cat(new).as_subclass(Tensor)
    changed = old != new
    assert len(old) == 24_000 and binomtest(changed.sum().item(), len(old), p*(K-1)/K).pvalue > 1e-3
    if K == 2: return
    for k in range(K):
        mine = new[changed & (old == k)].bincount(minlength=K)
        assert mine[k] == 0 and chisquare(np.delete(mine.numpy(), k)).pvalue > 1e-4

def test_disturbed_labels_are_drawn_anew_each_epoch_and_leave_the_data():
    x,y = data()
    seen = []
    learn = new_learner(dls=tensor_dls((x,y.clone()), (x,y), bs=24, device='cpu'))
    learn.dls.train.shuffle = False
    learn.fit(3, 1e-3, cbs=[DisturbLabel(.5), Probe(run_valid=False, after_loss=lambda l: seen.append(l.y.tolist()))])
    assert len(set(map(tuple, seen))) == 3 and torch.equal(learn.dls.train_ds.tensors[1], y)

@pytest.mark.parametrize('layer,names', [(None, ['0.0.weight','2.weight','5.weight']), ('2',['2.weight']), (nn.Linear,['2.weight','5.weight']), ('0*',['0.0.weight']), (-1,['5.weight'])], ids=str)
def test_l1_of_weights(layer, names):
    cb,sums = WeightL1(1e-3, layer),[]
    def check(l, x, y):
        m = copy_of(l)
        l1 = sum(p.abs().sum() for n,p in m.named_parameters() if n in names)
        sums.append(l1.item())
        as_by_hand(l, F.cross_entropy(m(x), y) + 1e-3*l1, m)
    cbs,_ = step(check)
    learn = new_learner(model=bn_net())
    learn.fit(2, 1e-2, cbs=[cb,*cbs])
    close(learn.recorder.terms['weight_l1_loss'], sums, eps=1e-2)

def test_l1_counts_shared_weights_once_and_frozen_ones_not():
    set_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.Linear(8,8), nn.Tanh(), nn.Linear(8,8), nn.Linear(8,3))
    model[4].weight = model[2].weight
    model[1].weight.requires_grad_(False)
    cb,sums,term = WeightL1(1e-3),[],[]
    look = lambda l: (sums.append((model[2].weight.abs().sum() + model[5].weight.abs().sum()).item()), term.append(cb.term.item()))
    new_learner(model=model).fit(1, 1e-2, cbs=[cb, Probe(order=5, run_valid=False, after_loss=look)])
    close(term, sums, eps=1e-3)
    with pytest.raises(ValueError, match='has no weights'): new_learner(model=model).fit(1, cbs=WeightL1(layer='1'))

def test_centres_are_exported_with_the_learner(tmp_path):
    learn = new_learner(cbs=CenterLoss(), path=tmp_path)
    learn.fit(1, 1e-2)
    learn.export('m.pkl')
    loaded = first(cb for cb in load_learner(tmp_path/'m.pkl').cbs if isinstance(cb, CenterLoss))
    assert torch.equal(loaded.centers, learn.center_loss.centers) and loaded.centers.shape == (3,8)

# Input that cannot do

REFUSED = [
    *[(partial(c, w), [c.__name__, '`weight`', '0 or more', repr(w)]) for c in (CenterLoss, WeightL1) for w in (-1, NAN, math.inf, 'strong', None)],
    *[(partial(CenterLoss, lr=r), ['CenterLoss', '`lr`', repr(r)]) for r in (0, -.1, 1.5, NAN, 'x', None)],
    *[(partial(DisturbLabel, p), ['DisturbLabel', '`p`', '0 to 1', repr(p)]) for p in (-.1, 1.1, NAN, 'x', None)],
    *[(partial(c, n_classes=n), [c.__name__, '`n_classes`', 'above 0', repr(n)]) for c in (CenterLoss, DisturbLabel) for n in (0, -1, 2.5, 'three')],
]

@pytest.mark.parametrize('make,match', REFUSED, ids=lambda o: f'{o.func.__name__}{o.args}{o.keywords}' if isinstance(o, partial) else '')
def test_arguments(make, match): raises(match, make)
