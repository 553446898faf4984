"`ManifoldMixup`: where it mixes, with what λ, and what is shown."
import pytest
from common import *

@pytest.mark.parametrize('alpha', [0, -.1, NAN, None])
def test_alpha(alpha): raises(['ManifoldMixup', 'alpha', 'above 0', repr(alpha)], lambda: ManifoldMixup(alpha))

def test_nothing_to_mix(): raises(['ManifoldMixup', 'nothing to mix'], lambda: ManifoldMixup(layers=[], input_mixup=False))

def test_a_hidden_state_is_mixed_where_it_says():
    "In a network that is not linear: the output is that of the mixed state of the drawn layer"
    learn,cb,checked = new_learner(model=nn.Sequential(nn.Flatten(), *[nn.Sequential(nn.Linear(i,8), nn.Tanh()) for i in (64,8)], nn.Linear(8,3))),ManifoldMixup(),set()
    def check(l):
        z = l.x
        with torch.no_grad():
            if str(cb.site) == 'input': z = cb.lam*z + (1-cb.lam)*torch.cat([z[-cb.shift:], z[:-cb.shift]])
            for n,m in l.model.named_children():
                z = m(z)
                if n == str(cb.site): z = cb.lam*z + (1-cb.lam)*torch.cat([z[-cb.shift:], z[:-cb.shift]])
        torch.testing.assert_close(z, l.pred.detach())
        checked.add(str(cb.site))
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

def test_input_mixup_alone():
    cb,sites = ManifoldMixup(layers=[]),set()
    new_learner().fit(2, 1e-2, cbs=[cb, Probe(after_pred=lambda l: sites.add(str(cb.site)))])
    assert sites == {'input'}

def test_learn_loss_is_the_mixed_loss():
    learn,cb,both = new_learner(),ManifoldMixup(alpha=1.),[]
    def look(l): both.append((l.loss.item(), l.loss_grad.item(), (cb.lam*F.cross_entropy(l.pred, l.y) + (1-cb.lam)*F.cross_entropy(l.pred, l.y.roll(cb.shift))).item()))
    learn.fit(2, 1e-2, cbs=[cb, Probe(after_loss=look, run_valid=False, order=5)])
    for logged,graded,want in both: close([logged,graded], [want]*2, eps=1e-5)
    assert len(both) == 6

@pytest.mark.parametrize('kwargs', [{}, dict(stop_grad=True), dict(per_item=True), dict(layers='all')], ids=str)
def test_a_loader_without_targets(kwargs):
    "fastai takes no step, and there is nothing to mix"
    x = data()[0]
    learn = new_learner(dls=DataLoaders(TfmdDL([(t,) for t in x], bs=8, n_inp=1), TfmdDL([(t,) for t in x], bs=8, n_inp=1), device='cpu'), metrics=[])
    before = [p.clone() for p in learn.model.parameters()]
    learn.fit(1, 1e-2, cbs=ManifoldMixup(**kwargs))
    assert all(map(torch.equal, before, learn.model.parameters()))
