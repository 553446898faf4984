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

@pytest.mark.parametrize('size,n_in', [(28,1),(32,3),(8,1),(64,3),(30,1),(7,2),((30,21),3),((5,64),4),((1,2),1)], ids=str)
def test_vae_shapes(size, n_in):
    "Images of any size: what is added at the edges is cut off again"
    vae,x = MMDVAE(n_in, size, 7, 4),torch.randn(5, n_in, *(size if isinstance(size, tuple) else (size,size)))
    rec,z = vae(x)
    assert rec.shape == x.shape and z.shape == (5,7) and vae.decode(vae.encode(x)).shape == x.shape
    vae.eval()
    assert torch.equal(vae(x)[1], vae.encode(x)) and torch.equal(vae(x)[0], vae.decode(vae.encode(x)))
    assert not torch.equal(vae.train()(x)[1], vae(x)[1])     # in training a sample
    for other in (x[...,:-1], x[...,1:,:], x.repeat(1, 2, 1, 1)): raises(['MMDVAE', str(tuple(x.shape[1:])), str(tuple(other.shape[1:])), 'fit_vae'], lambda: vae(other))

def test_a_multiple_of_4_is_as_it_was():
    "No edge is added: the weights are those of the records"
    set_seed(0); vae = MMDVAE(1, 28, 8, 4); x = torch.randn(2, 1, 28, 28)
    vae.eval()
    torch.testing.assert_close(vae.encode(x), vae.mean(vae.encoder(x)), rtol=0, atol=0)
    torch.testing.assert_close(vae.decode(vae.encode(x)), vae.decoder(vae.mean(vae.encoder(x))), rtol=0, atol=0)
    padded = MMDVAE(1, 27, 8, 4).eval(); padded.load_state_dict(vae.state_dict())
    by_hand = torch.cat([x[...,:27,:27], x[...,:27,26:27]], 3); by_hand = torch.cat([by_hand, by_hand[...,26:27,:]], 2)
    torch.testing.assert_close(padded.encode(x[...,:27,:27]), vae.encode(by_hand))

def test_bad_sizes():
    for size in (0, -4, 2.5, (8,), (8,8,8), '8', (8,0)): raises(['MMDVAE', '`size`'], lambda: MMDVAE(1, size))

@pytest.mark.parametrize('shape', [(1,32,32),(3,32,64),(1,30,21),(3,9,9),(2,12,8)], ids=str)
@pytest.mark.parametrize('dtype', [torch.float32,torch.float64], ids=str)
def test_fit_vae_and_varmixup_of_any_images(shape, dtype):
    x,y = torch.randn(24, *shape, dtype=dtype),torch.arange(24) % 3
    dls = tensor_dls((x,y), (x[:8],y[:8]), bs=8, device='cpu')
    vae = fit_vae(dls, 1, show=0, width=4, dim=3)
    assert vae(x)[0].shape == x.shape and vae(x)[0].dtype == dtype
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3)).to(dtype)
    seen = []
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=[VarMixup(vae), Probe(run_valid=False, after_pred=lambda l: seen.append(l.x.shape))])
    assert seen == [(8,*shape)]*3

def test_an_autoencoder_for_other_images():
    vae = MMDVAE(1, 28, 3, 4)
    raises(['VarMixup', '(1, 28, 28)', '(1, 8, 8)', 'fit_vae'], lambda: new_learner().fit(1, 1e-3, cbs=VarMixup(vae)))
    class Torchs(nn.Module):
        def __init__(self): super().__init__(); self.l = nn.Linear(9, 9)
        def encode(self, x): return self.l(x.flatten(1))
        def decode(self, z): return z
        def forward(self, x): return self.decode(self.encode(x)),x
    raises(['VarMixup', '(1, 8, 8)', 'fit_vae'], lambda: new_learner().fit(1, 1e-3, cbs=VarMixup(Torchs())))
    dls = new_learner().dls
    raises(['fit_vae', 'MMDVAE', '(1, 28, 28)', '(1, 8, 8)'], lambda: fit_vae(dls, 1, vae=vae, show=0))
    raises(['fit_vae', 'Torchs', '(1, 8, 8)'], lambda: fit_vae(dls, 1, vae=Torchs(), show=0), TypeError)
    raises(['fit_vae', 'Linear', 'latent code'], lambda: fit_vae(dls, 1, vae=nn.Linear(8, 8), show=0), TypeError)

def test_fit_vae_with_plain_loaders():
    "fastai's own loader over a list of items: the images are those of its batches"
    x,y = data()
    items = list(zip(x, y))
    a,b = (fit_vae(DataLoaders(cls(items, bs=8), cls(items[:8], bs=8), device='cpu'), 1, show=0, width=4, dim=3) for cls in (DataLoader,TfmdDL))
    assert same(a.state_dict(), b.state_dict())
    two = DataLoaders(*[DataLoader([(a,a,b) for a,b in items], bs=8)]*2, device='cpu')
    raises(['fit_vae', 'one input', '2'], lambda: fit_vae(two, 1, show=0), TypeError)

def test_fit_vae_of_two_inputs():
    x,y = data()
    raises(['fit_vae', 'one input', '2'], lambda: fit_vae(tensor_dls((x,x,y), (x,x,y), bs=8, device='cpu'), 1, show=0), TypeError)

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
