"The autoencoder of `fit_vae` and its loss, by hand."
import pytest
from common import *

def test_mmd_vae_loss_by_hand():
    torch.manual_seed(0)
    x,rec,z = torch.randn(6,1,4,4),torch.randn(6,1,4,4),torch.randn(6,3)
    torch.manual_seed(1); got = vae_loss((rec,z), x, 2.)
    torch.manual_seed(1); prior = torch.randn_like(z)
    both = torch.cat([z,prior])
    d = [((a-b)**2).sum() for i,a in enumerate(both) for b in both[:i]]
    sigma = torch.stack(d).median()
    k = lambda a,b: sum(torch.exp(-((p-q)**2).sum()/sigma) for p in a for q in b)/(len(a)*len(b))
    close(got.item(), (((rec-x)**2).sum()/x.numel() + 2*(k(z,z) + k(prior,prior) - 2*k(z,prior))).item(), eps=1e-4)

@pytest.mark.parametrize('size,n_in', [(28,1),(32,3),(8,1)])
def test_vae_shapes(size, n_in):
    vae,x = MMDVAE(n_in, size, 7, 4),torch.randn(5, n_in, size, size)
    rec,z = vae(x)
    assert rec.shape == x.shape and z.shape == (5,7) and vae.decode(vae.encode(x)).shape == x.shape
    vae.eval()
    assert torch.equal(vae(x)[1], vae.encode(x)) and torch.equal(vae(x)[0], vae.decode(vae.encode(x)))
    assert not torch.equal(vae.train()(x)[1], vae(x)[1])     # in training a sample
    with pytest.raises(ValueError, match='multiple of 4, not 30'): MMDVAE(1, 30)

def test_fit_vae_leaves_all_as_it_was():
    dls = digits_dls(n_train=60, n_valid=20)
    loaders,rngs = list(dls.loaders),[dl.rng.getstate() for dl in dls.loaders]
    torch.manual_seed(5); before = random_state()
    a = fit_vae(dls, 2, show=0, width=4, dim=3)
    assert random_state() == before and list(dls.loaders) == loaders and [dl.rng.getstate() for dl in dls.loaders] == rngs and not a.training
    assert same(a.state_dict(), fit_vae(dls, 2, show=0, width=4, dim=3).state_dict()) and not same(a.state_dict(), fit_vae(dls, 2, show=0, width=4, dim=3, seed=1).state_dict())
    more = fit_vae(dls, 1, vae=deepcopy(a), show=0)
    assert not same(more.state_dict(), a.state_dict())
    x = dls.valid.one_batch()[0].as_subclass(Tensor)
    assert F.mse_loss(fit_vae(dls, 30, show=0, width=16)(x)[0], x) < .6*x.var()

def test_fit_vae_interrupted():
    "Ctrl-C leaves loaders and random generators as they were, and the VAE that was given in training"
    dls = digits_dls(n_train=60, n_valid=20)
    rngs = [dl.rng.getstate() for dl in dls.loaders]
    class Stops(MMDVAE):
        calls = 0
        def forward(self, x):
            Stops.calls += 1
            if Stops.calls > 3: raise KeyboardInterrupt
            return super().forward(x)
    vae,before = Stops(1, 8, 3, 4),random_state()
    with pytest.raises(KeyboardInterrupt): fit_vae(dls, 2, vae=vae, show=0)
    assert [dl.rng.getstate() for dl in dls.loaders] == rngs and random_state() == before

def test_fit_vae_without_labels():
    x = torch.rand(40, 1, 8, 8)
    dls = DataLoaders(TfmdDL(list(zip(x)), bs=8, shuffle=True, num_workers=0, n_inp=1), TfmdDL(list(zip(x)), bs=8, num_workers=0, n_inp=1), device='cpu')
    vae = fit_vae(dls, 2, show=0, width=4, dim=3)
    assert vae(x)[0].shape == x.shape and not vae.training

def test_fit_vae_of_something_else():
    x,y = torch.randn(20, 6),torch.arange(20) % 2
    raises(['fit_vae', '(N, C, H, W)', 'float32', '6'], lambda: fit_vae(tensor_dls((x,y), (x,y), bs=4, device='cpu')), TypeError)
    b = (torch.rand(20,1,8,8)*255).byte()
    raises(['fit_vae', 'uint8'], lambda: fit_vae(tensor_dls((b,y), (b,y), bs=4, device='cpu')), TypeError)
