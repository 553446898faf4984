"VarMixup against arithmetic by hand, interrupted, and with input that cannot do."
import pytest
from common import *

class Posterior(TinyVAE):
    "As many are written: mean and log-variance"
    def encode(self, x): return self.enc(x.flatten(1)),torch.zeros(len(x), 5)
class AsDict(TinyVAE):
    def encode(self, x): return dict(z=self.enc(x.flatten(1)))
    def decode(self, z): return [self.dec(z).view(-1, 1, 8, 8)]

@pytest.mark.parametrize('cls', [TinyVAE,Posterior,AsDict])
@pytest.mark.parametrize('kind', ['classes','one-hot'])
def test_varmixup_by_hand(kind, cls):
    "Loss and gradients of every batch are those of decode(λ·encode(x_i) + (1−λ)·encode(x_j))"
    x,y = data()
    if kind == 'one-hot': y = F.one_hot(y, 3).float()
    vae = cls()
    learn = new_learner(dls=tensor_dls((x,y), (x,y), bs=8, device='cpu'), model=nn.Sequential(nn.Flatten(), nn.Linear(64,3)), loss_func=nn.CrossEntropyLoss(), metrics=[])
    cb,kept,seen = VarMixup(vae),[],[]
    def before(l):
        (x,y),lam,s = kept.pop(),cb.lam,cb.shift
        with torch.no_grad(): images = vae.dec(mixed(vae.enc(x.flatten(1)), lam, s)).view(-1, 1, 8, 8)
        other = torch.stack([y[(i-s) % len(y)] for i in range(len(y))])
        pred = l.model(images)
        loss = lam*F.cross_entropy(pred, y) + (1-lam)*F.cross_entropy(pred, other)
        kept.append((loss, grads(loss, l.model)))
    def after(l): as_by_hand(l, *kept.pop()); seen.append(cb.lam)
    learn.fit(3, 1e-2, cbs=[cb, Probe(order=-9, run_valid=False, before_batch=lambda l: kept.append((l.x.clone(), l.y.clone()))),
                            Probe(order=20, run_valid=False, before_batch=before), Probe(order=20, run_valid=False, after_backward=after)])
    assert len(seen) == 9 and len(set(seen)) == 9

def test_share_of_batches():
    "p of the batches are mixed; the others, and their loss, are as they were"
    for p,low,high in ((.5, 60, 140), (1., 201, 201), (0., 0, 0)):
        learn,cb,kept,treated = new_learner(),VarMixup(VAE, p=p),[],[]
        def look(l):
            treated.append(not torch.equal(kept.pop(), l.x))
            if not treated[-1]: close(l.loss.item(), F.cross_entropy(l.pred, l.y).item(), eps=1e-6)
        learn.fit(67, 1e-3, cbs=[cb, Probe(order=-9, run_valid=False, before_batch=lambda l: kept.append(l.x.clone())), Probe(order=20, run_valid=False, after_loss=look)])
        assert len(treated) == 201 and low <= sum(treated) <= high

@pytest.mark.parametrize('exc', [KeyboardInterrupt,RuntimeError,CancelFitException])
@pytest.mark.parametrize('event', ['before_batch','after_pred','after_backward','after_train'])
def test_the_vae_is_as_it_was(exc, event):
    "In training mode with gradients on, and never looked at but to be copied"
    vae = MMDVAE(1, 8, 4, 4).train()
    before = module_state(vae)
    learn,raised = new_learner(),[]
    def fail(l): raised.append(1); raise exc('fault')
    try: learn.fit(1, 1e-2, cbs=[VarMixup(vae), Probe(run_valid=False, **{event: fail})])
    except exc: pass
    assert len(raised) == 1
    assert same_state(module_state(vae), before) and not hooks(vae) and all(p.grad is None for p in vae.parameters())

def test_the_vae_is_not_in_the_model():
    learn,vae = new_learner(),MMDVAE(1, 8, 4, 4)
    names,n = list(learn.model.state_dict()),len(list(learn.model.parameters()))
    learn.fit(1, 1e-2, cbs=VarMixup(vae))
    assert list(learn.model.state_dict()) == names and sum(len(g['params']) for g in [dict(params=l) for l in learn.opt.param_lists]) == n

def test_the_vae_works_in_evaluation_mode():
    "Batch normalisation with running statistics, which stay; the copy is the fit's, made anew"
    vae,modes = MMDVAE(1, 8, 4, 4),[]
    learn,cb = new_learner(),VarMixup(vae)
    look = lambda l: modes.append((cb._vae.training, any(m.training for m in cb._vae.modules()), any(p.requires_grad for p in cb._vae.parameters()), cb._vae is vae, same(module_state(cb._vae)[0], module_state(vae)[0])))
    learn.fit(1, 1e-2, cbs=[cb, Probe(run_valid=False, after_pred=look)])
    assert set(modes) == {(False,False,False,False,True)}
    with torch.no_grad(): [p.add_(1.) for p in vae.parameters()]
    learn.fit(1, 1e-2, cbs=[cb, Probe(run_valid=False, after_pred=look)])     # trained on meanwhile: the next fit has the new one
    assert set(modes) == {(False,False,False,False,True)}

class Decodes(TinyVAE):
    def __init__(self, f): super().__init__(); self.f = f
    def decode(self, z): return self.f(super().decode(z))
class Encodes(TinyVAE):
    def __init__(self, f): super().__init__(); self.f = f
    def encode(self, x): return self.f(super().encode(x))

@pytest.mark.parametrize('vae,match', [(Decodes(lambda x: x[...,:7]), ['the decoder gave (8, 1, 8, 7) for images of (8, 1, 8, 8)']), (Decodes(lambda x: x.flatten(1)), ['(8, 64)']), (Decodes(lambda x: x[:5]), ['(5, 1, 8, 8)']),
    (Decodes(lambda x: None), ['no tensor']), (Encodes(lambda z: z[:3]), ['3 codes for 8 images']), (Encodes(lambda z: None), ['no tensor for 8 images'])], ids=['narrow','flat','few','none','few codes','no code'])
def test_an_autoencoder_that_cannot_do(vae, match):
    learn,before = new_learner(),weights(new_learner())
    raises(['VarMixup', *match], lambda: learn.fit(1, 1e-2, cbs=VarMixup(vae)))
    assert same(weights(learn), before) and not hooks(learn.model)

def test_bad_arguments():
    raises(['VarMixup', '`vae`', 'no decode', 'fit_vae'], lambda: VarMixup(nn.Linear(2,2)), TypeError)
    raises(['VarMixup', 'no encode and no decode'], lambda: VarMixup(None), TypeError)
    class NoModule: encode = decode = lambda self, x: x
    raises(['VarMixup', 'NoModule is no nn.Module'], lambda: VarMixup(NoModule()), TypeError)
    for kw,match in ((dict(alpha=0), ['`alpha`', '0']), (dict(alpha=-1.), ['-1']), (dict(alpha=math.nan), ['nan']), (dict(p=1.5), ['`p`', '1.5']), (dict(p='x'), ['`p`', "'x'"])): raises(['VarMixup', *match], lambda: VarMixup(VAE, **kw))
    for kw,match in ((dict(alpha_labeled=0), ['`alpha_labeled`']), (dict(alpha_unlabeled=-2), ['`alpha_unlabeled`', '-2']), (dict(weight=-1), ['`weight`']), (dict(rampup=2), ['`rampup`', '2']), (dict(layers=[], input_mixup=False), ['nothing to mix'])):
        raises(['SemiSupervisedMixup', *match], lambda: SemiSupervisedMixup(UNLABELED, **kw))
    dls = tensor_dls(data(), data(12), bs=8, device='cpu')
    for bad,match in ((dls, ['DataLoaders', 'dls.train']), (torch.randn(4,2), ['Tensor']), (3, ['int']), (dls.train_ds, ['TensorItems']), (None, ['NoneType', 'semisup_dls'])): raises(['SemiSupervisedMixup', '`unlabeled` must be a loader', *match], lambda: SemiSupervisedMixup(bad), TypeError)
    for kw,match in ((dict(alpha=0), ['`alpha`']), (dict(alpha=1.5), ['up to 1', '1.5']), (dict(weight=-1), ['`weight`']), (dict(layers=[], input_mixup=False), ['nothing to mix'])): raises(['GANMixup', *match], lambda: GANMixup(**kw))

def test_images_that_are_none():
    x,y = data()
    for t in (x.long(), (x*20).byte()):
        learn = new_learner(dls=tensor_dls((t,y), (t,y), bs=8, device='cpu'))
        raises(['VarMixup', 'floating'], lambda: learn.fit(1, cbs=VarMixup(VAE)), TypeError)
