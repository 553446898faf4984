"Mixup in a GAN: the critic's loss pair by pair, and learners that are none."
import pytest
from common import *

class Logit(nn.Module):
    "A critic that is linear: mixing anywhere is mixing the images"
    def __init__(self): super().__init__(); self.a,self.b = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)),nn.Linear(5, 1)
    def forward(self, x): return self.b(self.a(x))

@pytest.mark.parametrize('layers', [[],['a'],None])
def test_gan_by_hand(layers):
    "Eqs. 8 to 11: the critic's loss and its gradients, pair by pair"
    learn = gan_learner(model=(Generator(),Logit()))
    cb,kept,kinds,sites = GANMixup(.5, layers, weight=2.),[],Counter(),set()
    def after(l):
        if l.model.gen_mode: assert cb.term is None; return
        real,fake,rng = l.xb[0],kept.pop(),np.random.default_rng()
        rng.bit_generator.state = states.pop()
        lam = .5*rng.random()
        rng.random()                                      # the layer
        x1,x2,y = [],[],[]
        for i,k in enumerate(rng.integers(3, size=len(real))):
            x1.append(real[i] if k == 0 else fake[i]); x2.append(real[i] if k == 1 else fake[i-1]); y.append((lam,1-lam,0.)[k]); kinds[int(k)] += 1
        critic = l.model.critic
        one = lambda x,t: F.binary_cross_entropy_with_logits(critic(x[None]).view(()), torch.tensor(float(t)))
        loss = sum(one(x, 1.) for x in real)/8 + sum(one(x, 0.) for x in fake)/8 + 2*sum(one(lam*a + (1-lam)*b, t) for a,b,t in zip(x1, x2, y))/8
        assert 0 < lam < .5 and abs(cb.lam - lam) < 1e-12
        torch.testing.assert_close(l.loss_grad.detach(), loss.detach(), rtol=1e-4, atol=1e-6)
        wanted.append(torch.autograd.grad(loss, list(critic.parameters())))
        sites.add(str(cb.site))
    def check(l):
        if l.model.gen_mode: return
        for p,g in zip(l.model.critic.parameters(), wanted.pop()): torch.testing.assert_close(p.grad, g, rtol=1e-3, atol=1e-6)
        assert not cb._fake.requires_grad and all(p.grad is None or not p.grad.any() for p in l.model.generator.parameters())   # the generator learns nothing from it
    wanted,states = [],[]
    h = learn.model.generator.register_forward_hook(lambda m,a,out: kept.append(out.detach().clone()))
    keep = Probe(order=0, run_valid=False, after_loss=lambda l: states.append(cb.rng.bit_generator.state))
    learn.fit(12, 1e-3, cbs=[keep, cb, Probe(order=20, run_valid=False, after_loss=after), Probe(order=20, run_valid=False, after_backward=check, before_batch=lambda l: kept.clear())])
    h.remove()
    assert set(kinds) == {0,1,2} and min(kinds.values()) > 20 and sites == ({'input'} if layers == [] else {'input','a'})

def test_a_learner_that_is_no_gan():
    raises(['GANMixup', 'critic of a GAN', 'Sequential', 'GANLearner'], lambda: new_learner().fit(1, cbs=GANMixup()), TypeError)
    raises(['GANMixup', "layers=['nowhere']", 'no layer'], lambda: gan_learner().fit(1, cbs=GANMixup(layers=['nowhere'])))

def test_a_critic_without_one_output_a_row():
    class Mean(nn.Module):
        def __init__(self): super().__init__(); self.l = Logit()
        def forward(self, x): return self.l(x).mean(0, keepdim=True)
    raises(['GANMixup', 'gave 1 outputs for 8 mixed images', 'layers'], lambda: gan_learner(model=(Generator(),Mean())).fit(1, 1e-3, cbs=GANMixup(layers=[])))

def test_a_wasserstein_critic_with_a_loss_of_its_own():
    learn = gan_learner()
    learn.fit(1, 1e-3, cbs=GANMixup(loss_func=lambda pred,y: ((1-2*y)*pred).mean()))
    assert any(not math.isnan(t) for t in learn.recorder.terms['critic_mixup_loss'])

def test_generator_steps_are_untouched():
    "A step of the generator after equal critics is the same with the callback"
    res = []
    for cbs in (None, GANMixup(weight=5.)):
        learn,got = gan_learner(gen_first=True),[]
        def stop(l): got.append(weights(l)); raise CancelFitException
        learn.fit(1, 1e-2, cbs=L(cbs) + [Probe(run_valid=False, after_batch=stop)])
        res.append(got[0])
    assert same(*res)
