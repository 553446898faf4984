"VarMixup, semi-supervised mixup, mixup in a GAN, labels from elsewhere, autoencoders: against arithmetic by hand, interrupted, and with input that cannot do."
import json, pytest
from common import *
from latentreg_fastai.data import *
from latentreg_fastai.models import *

def mixed(t, lam, shift): return torch.stack([lam*t[i] + (1-lam)*t[(i-shift) % len(t)] for i in range(len(t))])   # no roll, no lerp
def state(m): return {k: v.clone() for k,v in m.state_dict().items()}, {n: s.training for n,s in m.named_modules()}, [p.requires_grad for p in m.parameters()]
def same_state(a, b): return same(a[0], b[0]) and a[1:] == b[1:]
def raises(match, f, exc=(ValueError,TypeError)):
    with pytest.raises(exc) as e: f()
    for m in match: assert m in str(e.value), (m, str(e.value))
    return str(e.value)
def grads(loss, model): return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
def as_by_hand(l, loss, gs):
    torch.testing.assert_close(l.loss_grad.detach().as_subclass(Tensor), loss.detach(), rtol=1e-4, atol=1e-6)
    for p,g in zip(l.model.parameters(), gs): torch.testing.assert_close(torch.zeros_like(p) if p.grad is None else p.grad, torch.zeros_like(p) if g is None else g, rtol=1e-3, atol=1e-5)

# VarMixup

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
    for p,low,high in ((.5, 60, 140), (1., 200, 200), (0., 0, 0)):
        learn,cb,kept,treated = new_learner(),VarMixup(VAE, p=p),[],[]
        def look(l):
            treated.append(not torch.equal(kept.pop(), l.x))
            if not treated[-1]: close(l.loss.item(), F.cross_entropy(l.pred, l.y).item(), eps=1e-6)
        learn.fit(67, 1e-3, cbs=[cb, Probe(order=-9, run_valid=False, before_batch=lambda l: kept.append(l.x.clone())), Probe(order=20, run_valid=False, after_loss=look)])
        assert len(treated) == 201 and low <= sum(treated) <= high+1

@pytest.mark.parametrize('exc', [KeyboardInterrupt,RuntimeError,CancelFitException])
@pytest.mark.parametrize('event', ['before_batch','after_pred','after_backward','after_train'])
def test_the_vae_is_as_it_was(exc, event):
    "In training mode with gradients on, and never looked at but to be copied"
    vae = MMDVAE(1, 8, 4, 4).train()
    before = state(vae)
    learn = new_learner()
    def fail(l): raise exc('fault')
    try: learn.fit(1, 1e-2, cbs=[VarMixup(vae), Probe(run_valid=False, **{event: fail})])
    except exc: pass
    assert same_state(state(vae), before) and not hooks(vae) and all(p.grad is None for p in vae.parameters())

def test_the_vae_is_not_in_the_model():
    learn,vae = new_learner(),MMDVAE(1, 8, 4, 4)
    names,n = list(learn.model.state_dict()),len(list(learn.model.parameters()))
    learn.fit(1, 1e-2, cbs=VarMixup(vae))
    assert list(learn.model.state_dict()) == names and sum(len(g['params']) for g in [dict(params=l) for l in learn.opt.param_lists]) == n

def test_the_vae_works_in_evaluation_mode():
    "Batch normalisation with running statistics, which stay; the copy is the fit's, made anew"
    vae,modes = MMDVAE(1, 8, 4, 4),[]
    learn,cb = new_learner(),VarMixup(vae)
    look = lambda l: modes.append((cb._vae.training, any(m.training for m in cb._vae.modules()), any(p.requires_grad for p in cb._vae.parameters()), cb._vae is vae, same(state(cb._vae)[0], state(vae)[0])))
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

def test_mixers_beside_each_other():
    for one,two in ((VarMixup(VAE), ManifoldMixup()), (VarMixup(VAE), MixUp()), (SemiSupervisedMixup(UNLABELED), VarMixup(VAE)), (SemiSupervisedMixup(UNLABELED), ManifoldMixup()), (SemiSupervisedMixup(UNLABELED), CutMix())):
        for cbs in ([one,two],[two,one]):
            learn = new_learner(); loss = learn.loss_func
            said = raises(['take one of the two'], lambda: learn.fit(1, 1e-2, cbs=cbs))
            assert type(one).__name__ in said and type(two).__name__ in said and learn.loss_func is loss and not hooks(learn.model)

# Semi-supervised mixup

LINEAR = lambda: nn.Sequential(nn.Linear(6,5), nn.Linear(5,4), nn.Linear(4,3))
def few_and_many(n=24, m=40, bs=8, ubs=10):
    g = torch.Generator().manual_seed(0)
    x,y,u = torch.randn(n, 6, generator=g),torch.arange(n) % 3,torch.randn(m, 6, generator=g)
    return tensor_dls((x,y), (x,y), bs=bs, device='cpu'),u

@pytest.mark.parametrize('layers', [None,[],['0'],['1']])
@pytest.mark.parametrize('ubs', [8,10])
def test_semisup_by_hand(layers, ubs):
    "Both losses and the gradients of their sum, Algorithms 1 to 3: on a linear network mixing anywhere is mixing the inputs"
    dls,u = few_and_many()
    learn = new_learner(model=LINEAR(), dls=dls)
    cb,kept,sites = SemiSupervisedMixup(DataLoader(u, bs=ubs, shuffle=True, num_workers=0), alpha_labeled=1., weight=3., rampup=0., layers=layers),[],set()
    def before(l):
        (xu,),(lam2,s2,site) = cb._rows._more,cb._second
        pseudo = l.model(xu).softmax(1).detach()
        pred = l.model(mixed(l.x, cb.lam, cb.shift))
        partner = torch.stack([l.y[(i-cb.shift) % len(l.y)] for i in range(len(l.y))])
        labelled = cb.lam*F.cross_entropy(pred, l.y) + (1-cb.lam)*F.cross_entropy(pred, partner)
        diff = l.model(mixed(xu, lam2, s2)).softmax(1) - mixed(pseudo, lam2, s2)
        loss = labelled + 3*sum((diff[i]**2).sum() for i in range(len(diff)))/diff.numel()
        kept.append((labelled.item(), loss, grads(loss, l.model)))
        sites.add((str(cb._site),str(site)))
    def after(l):
        labelled,loss,gs = kept.pop()
        close(l.loss.item(), labelled, eps=1e-4)          # what fastai shows is the labelled loss
        as_by_hand(l, loss, gs)
    learn.fit(10, 1e-2, cbs=[cb, Probe(order=20, run_valid=False, before_batch=before), Probe(order=20, run_valid=False, after_backward=after)])
    there = {None: {'input','0','1'}, (): {'input'}}.get(layers if layers is None else tuple(layers), {'input',*(layers or ())})
    assert {a for a,_ in sites} == {b for _,b in sites} == there and len(sites) == len(there)**2

def test_pseudo_labels_are_of_the_model_in_evaluation_mode():
    "Of unmixed rows, without gradients; modes and running statistics stay, no random number is drawn"
    cb,seen = SemiSupervisedMixup(UNLABELED, rampup=0.),[]
    learn = new_learner()
    def look(l):
        before,modes = state(l.model),random_state()
        got = cb.pseudo_labels()
        clean = net(); clean.load_state_dict(l.model.state_dict()); clean.eval()
        assert same_state(state(l.model), before) and random_state()[:2] == modes[:2]
        seen.append(torch.equal(got, clean(cb._rows._more[0]).softmax(1)) and not got.requires_grad)
    def quiet(l):
        with no_random(): look(l)
    learn.fit(2, 1e-2, cbs=[cb, Probe(run_valid=False, after_loss=quiet)])
    assert seen == [True]*6

def test_the_ramp():
    "exp(−5(1−t/.4)²) up to .4 of training, then 1, times the weight or its schedule"
    for rampup in (.4, .1, 1., 0.):
        learn,cb,got = new_learner(),SemiSupervisedMixup(UNLABELED, weight=lambda t: 2 + t, rampup=rampup),[]
        learn.fit(4, 1e-3, cbs=[cb, Probe(order=0, run_valid=False, after_loss=lambda l: got.append((l.train_iter/12, cb._w)))])
        for t,w in got: close(w, (2 + t)*(1. if rampup == 0 or t >= rampup else math.exp(-5*(1 - t/rampup)**2)), eps=1e-9)
        assert len(got) == 12
    assert abs(SemiSupervisedMixup(UNLABELED).rampup - .4) < 1e-9

def unlabeled_loaders():
    x,y = data(20, seed=3)
    pairs,ds = list(zip(x, y)),torch.utils.data.TensorDataset(x, y)
    return {'TensorDL': TensorDL((x,y), bs=8, shuffle=True), 'TfmdDL': TfmdDL(pairs, bs=8, shuffle=True, num_workers=0), 'fastai DataLoader': DataLoader(pairs, bs=8, shuffle=True, num_workers=0),
            'torch': torch.utils.data.DataLoader(ds, 8, shuffle=True), 'torch, generator': torch.utils.data.DataLoader(ds, 8, shuffle=True, generator=torch.Generator().manual_seed(3)),
            'without targets': torch.utils.data.DataLoader(x, 8, shuffle=True), 'a list': [x[:8],x[8:16]], 'a list of tuples': [(x[:8],)], 'drop_last': TensorDL((x,y), bs=8, shuffle=True, drop_last=True)}
@pytest.mark.parametrize('kind', unlabeled_loaders())
def test_any_loader_will_do(kind):
    "It restarts when it ends, goes on from epoch to epoch, gives all of its samples, and is left as it was"
    res = []
    for _ in range(2):
        dl = unlabeled_loaders()[kind]
        learn,seen = new_learner(),[]
        if hasattr(dl, 'rng'): dl.rng.seed(5)
        states = getattr(dl, 'rng', None) and dl.rng.getstate(), getattr(dl, 'generator', None) is not None and dl.generator.get_state().tolist()
        cb = SemiSupervisedMixup(dl, rampup=0.)
        learn.fit(4, 1e-2, cbs=[cb, Probe(order=20, run_valid=False, before_batch=lambda l: seen.append(cb._rows._more[0].clone()))])
        assert len(seen) == 12 and (getattr(dl, 'rng', None) and dl.rng.getstate(), getattr(dl, 'generator', None) is not None and dl.generator.get_state().tolist()) == states
        res.append((seen,weights(learn)))
    assert all(map(torch.equal, *[r[0] for r in res])) and same(res[0][1], res[1][1])
    rows = lambda seen: Counter(round(float(r.sum()), 4) for t in seen for r in t)
    if kind not in ('a list','a list of tuples','drop_last'):
        first,second = rows(res[0][0][:3]),rows(res[0][0][3:6])
        assert len(first) == 20 and set(first.values()) == {1} and first == second and not torch.equal(res[0][0][0], res[0][0][3])   # each once a pass, in another order

def test_it_can_be_copied_and_pickled_after_a_fit():
    learn = new_learner(cbs=SemiSupervisedMixup(unlabeled_loaders()['TensorDL'], rampup=0.))
    learn.fit(1, 1e-2)
    import pickle
    for cb in (deepcopy(learn.semi_supervised_mixup), pickle.loads(pickle.dumps(learn.semi_supervised_mixup))):
        assert isinstance(cb, SemiSupervisedMixup) and torch.equal(next(cb._batches)[0], next(deepcopy(learn.semi_supervised_mixup)._batches)[0])

def test_resumed_within_a_pass(tmp_path):
    "The unlabelled loader goes on where it was: 3 batches an epoch, 5 a pass"
    make = lambda: SemiSupervisedMixup(TensorDL(data(20, seed=3), bs=4, shuffle=True), rampup=0.)
    whole,seen = [],[]
    look = lambda cb,to: Probe(order=20, run_valid=False, before_batch=lambda l: to.append(cb._rows._more[0].clone()))
    cb = make()
    new_learner(path=tmp_path).fit(4, 1e-2, cbs=[cb, look(cb, whole)])
    class Cut(Callback):
        def before_epoch(self):
            if self.epoch == 2: raise CancelFitException
    new_learner(path=tmp_path).fit(4, 1e-2, cbs=[make(), TrainingSaver('run'), Cut()])
    learn,cb = new_learner(path=tmp_path, seed=9),make()
    learn.load_training('run', cbs=cb).fit(4, 1e-2, cbs=[cb, look(cb, seen)], start_epoch=2)
    assert len(seen) == 6 and all(map(torch.equal, whole[6:], seen))

class Silent(torch.utils.data.IterableDataset):
    def __iter__(self): return iter(())

@pytest.mark.parametrize('bad,match', [(lambda: [], ['is empty']), (lambda: torch.utils.data.DataLoader(Silent()), ['is empty']), (lambda: TensorDL((data()[0][:4],data()[1][:4]), bs=8, drop_last=True), ['is empty']),
    (lambda: TensorDL((torch.randn(20, 1, 9, 9),torch.zeros(20).long()), bs=8), ['(1, 9, 9)', '(1, 8, 8)', 'both must be alike']), (lambda: TensorDL((torch.randn(20, 3, 8, 8),torch.zeros(20).long()), bs=8), ['(3, 8, 8)'])], ids=['list','stream','drop_last','size','channels'])
def test_unlabeled_data_that_cannot_do(bad, match):
    learn,before = new_learner(),weights(new_learner())
    raises(['SemiSupervisedMixup', *match], lambda: learn.fit(1, 1e-2, cbs=SemiSupervisedMixup(bad(), rampup=0.)))
    assert same(weights(learn), before) and not hooks(learn.model)

def test_a_training_loader_without_labels():
    "The two loaders mixed up"
    x,y = data()
    learn = new_learner(dls=DataLoaders(TfmdDL([(t,) for t in x], bs=8, n_inp=1), TfmdDL(list(zip(x,y)), bs=8), device='cpu'))
    raises(['SemiSupervisedMixup', 'no targets', 'semisup_dls'], lambda: learn.fit(1, 1e-2, cbs=SemiSupervisedMixup(UNLABELED)))

def test_penalties_see_labelled_rows_alone():
    "Beside it a penalty looks at the mixed rows of the batch and not at the others"
    learn,seen = new_learner(),[]
    class Rows(LatentCallback):
        def penalty(self, z, *yb): seen.append((len(z), len(yb[0]))); return z.square().mean()
    learn.fit(1, 1e-2, cbs=[Rows(.1), SemiSupervisedMixup(UNLABELED, rampup=0.)])
    assert seen == [(8,8)]*3

# semisup_dls

def test_semisup_dls_of_every_kind(tmp_path):
    "Tensors, `Datasets` of files, a table: balanced, nothing lost, validation the user's own"
    from PIL import Image
    files = []
    for i in range(30):
        d = tmp_path/'ab'[i % 2]; d.mkdir(exist_ok=True)
        Image.fromarray(np.full((8,8), i*8, dtype=np.uint8)).save(d/f'{i}.png')
    import fastai.tabular.all as tab
    df = pd.DataFrame(dict(a=np.arange(30.), b=np.arange(30.)[::-1], y=['u','v']*15))
    kinds = {'tensors': tensor_dls(data(30, 2), data(12), bs=8, device='cpu'), 'files': ImageDataLoaders.from_folder(tmp_path, valid_pct=.2, seed=0, bs=4, num_workers=0, device='cpu'),
             'table': tab.TabularDataLoaders.from_df(df, cont_names=['a','b'], y_names='y', valid_idx=list(range(24,30)), bs=4, procs=[tab.Normalize], device='cpu'),
             'items': DataLoaders.from_dsets(list(zip(*data(30, 2))), list(zip(*data(12))), bs=8, num_workers=0, device='cpu')}
    for kind,dls in kinds.items():
        rng = dls.train.rng.getstate()
        few,rest = semisup_dls(dls, 6, seed=1)
        n = len(dls.train.dataset)
        assert np.bincount(labels_of(few.train)).tolist() == [3,3] and len(rest.dataset) == n - 6 and few.valid is dls.valid and dls.train.rng.getstate() == rng, kind
        again,_ = semisup_dls(dls, 6, seed=1)
        other,_ = semisup_dls(dls, 6, seed=2)
        first = lambda d: torch.stack([torch.as_tensor(np.array(tensor(t) if not isinstance(t, Tensor) else t), dtype=torch.float32).flatten() for t in (d.train.dataset[i][0] for i in range(6))]) if kind not in ('table',) else torch.tensor(d.train.dataset.items[['a']].values)
        assert torch.equal(first(few), first(again)) and not torch.equal(first(few), first(other)), kind
        b = few.train.one_batch()
        assert len(b[-1]) == min(6, dls.train.bs) and len(rest.one_batch()[0]) == dls.train.bs, kind
    for n,match in ((7, ['n_labeled=7']), (30, ['n_labeled=30', 'nothing is left']), (40, ['n_labeled=40']), (0, ['n_labeled=0'])):
        raises(['semisup_dls', *match], lambda: semisup_dls(kinds['tensors'], n))

# Mixup in a GAN

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
        sites.add(str(cb._site))
    def check(l):
        if l.model.gen_mode: return
        for p,g in zip(l.model.critic.parameters(), wanted.pop()): torch.testing.assert_close(p.grad, g, rtol=1e-3, atol=1e-6)
        assert not cb._fake.requires_grad and all(p.grad is None or not p.grad.any() for p in l.model.generator.parameters())   # the generator learns nothing from it
    wanted,states = [],[]
    h = learn.model.generator.register_forward_hook(lambda m,a,out: kept.append(out.detach().clone()))
    keep = Probe(order=0, run_valid=False, after_loss=lambda l: states.append(cb.rng.bit_generator.state))
    learn.fit(12, 1e-3, cbs=[keep, cb, Probe(order=20, run_valid=False, after_loss=after), Probe(order=20, run_valid=False, after_backward=check, before_batch=lambda l: kept.clear())])
    h.remove()
    assert set(kinds) == {0,1,2} and min(kinds.values()) > 20 and sites == ({'input'} if layers == [] else {'input','critic.a','a'} & sites) and (layers == [] or len(sites) == 2)

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
    assert any(not math.isnan(t) for t in learn.recorder.terms['critic_mixup'])

def test_generator_steps_are_untouched():
    "A step of the generator after equal critics is the same with the callback"
    res = []
    for cbs in (None, GANMixup(weight=5.)):
        learn,got = gan_learner(gen_first=True),[]
        def stop(l): got.append(weights(l)); raise CancelFitException
        learn.fit(1, 1e-2, cbs=L(cbs) + [Probe(run_valid=False, after_batch=stop)])
        res.append(got[0])
    assert same(*res)

# Labels from elsewhere

def image_learner(cbs=None, labels_at=1, **kwargs):
    x,y = data()
    order = ((x,x,y),(x,y,x)) [labels_at != 1]
    ds = TensorItems(*order); ds.n_inp = 1
    dls = DataLoaders(TensorDL(ds, bs=8, shuffle=True), TensorDL(ds, bs=8), device='cpu')
    loss = (lambda p,a,b: F.mse_loss(p, a)) if labels_at == 1 else (lambda p,a,b: F.mse_loss(p, b))
    return new_learner(cbs, dls=dls, model=Autoencoder((1,8,8), (16,8,4,8,16)), loss_func=loss, metrics=[], **kwargs)

CLASSWISE = {'cw-VR': (VarianceRegularizer, lambda z,y: sum(z[y == k].var(0, unbiased=False).mean() for k in range(3) if (y == k).any())/3),
             'cw-CR': (CovarianceRegularizer, lambda z,y: sum(c.square()[torch.triu_indices(len(c), len(c), 1).unbind()].mean() for k in range(3) if (y == k).any() for c in [torch.cov(z[y == k].T, correction=0)])/3)}
@pytest.mark.parametrize('name', CLASSWISE)
@pytest.mark.parametrize('where', ['position','negative','function','first'])
def test_labels_of_an_autoencoder(name, where):
    "The penalty of the third layer, by class, with the labels that lie behind the image"
    cls,want = CLASSWISE[name]
    labels = {'position': 1, 'negative': -1, 'function': lambda learn: learn.yb[1], 'first': 0}[where]
    learn,seen = image_learner(labels_at=0 if where == 'first' else 1),[]
    cb = cls(1., layer='3', labels=labels, n_classes=3)
    def look(l):
        z = l.model.encode(l.x)
        y = l.yb[0 if where == 'first' else 1]
        close(cb.term.item(), want(z, y).item(), eps=1e-5); seen.append(l.loss.item())
        close(l.loss_grad.item(), l.loss.item() + cb.term.item(), eps=1e-5)
    learn.fit(2, 1e-3, cbs=[cb, Probe(order=5, run_valid=False, after_loss=look)])
    assert len(seen) == 6

@pytest.mark.parametrize('make', [lambda **kw: ITRA(warmup=0., **kw), lambda **kw: ITRA(source='split', warmup=0., **kw), lambda **kw: ITRA(source='queue', warmup=0., **kw), lambda **kw: CenterLoss(**kw), lambda **kw: VarianceRegularizer(**kw)], ids=['ITRA','ITRA split','ITRA queue','CenterLoss','cw-VR'])
def test_labels_elsewhere_are_the_labels(make):
    "Labels as the second target train as the same labels as the first, with a loss that takes both"
    res = []
    x,y = data()
    for swap in (False,True):
        ds = TensorItems(x, *((x,y) if swap else (y,x))); ds.n_inp = 1
        dls = DataLoaders(TensorDL(ds, bs=8, shuffle=True), TensorDL(ds, bs=8), device='cpu')
        loss = (lambda p,a,b: F.cross_entropy(p, b)) if swap else (lambda p,a,b: F.cross_entropy(p, a))
        learn = new_learner(dls=dls, loss_func=loss, metrics=[])
        for dl in learn.dls.loaders: dl.rng.seed(3)
        learn.fit(2, 1e-2, cbs=make(n_classes=3, **({'labels': 1} if swap else {})))
        res.append(weights(learn))
    assert same(*res)

@pytest.mark.parametrize('labels,match,exc', [(2, ['labels=2', '2 targets', '0 to 1'], IndexError), (-3, ['labels=-3'], IndexError), (0, ['one integer label a sample', 'float32', '(8, 1, 8, 8)'], TypeError),
    (lambda l: l.yb[1][:5], ['rows for', 'labels'], ValueError), (lambda l: None, ['NoneType'], TypeError), (lambda l: l.yb[1].float(), ['float32'], TypeError)], ids=['beyond','below','image','few','none','floats'])
@pytest.mark.parametrize('cls', [VarianceRegularizer,CovarianceRegularizer,lambda *a, **k: ITRA(*a, warmup=0., **k)], ids=['VR','CR','ITRA'])
def test_labels_that_do_not_line_up(cls, labels, match, exc):
    learn = image_learner()
    before = weights(learn)
    cb = cls(1., layer='3', labels=labels, n_classes=3)
    raises([type(cb).__name__, *match], lambda: learn.fit(1, 1e-3, cbs=cb), exc)
    assert same(weights(learn), before) and not hooks(learn.model)

def test_labels_of_a_wrong_kind():
    for bad in ('y', 1.5, [0], True): raises(['VarianceRegularizer', '`labels`', repr(bad)], lambda: VarianceRegularizer(labels=bad), TypeError)
    raises(['VarianceRegularizer', 'number of classes', '`n_classes`'], lambda: image_learner().fit(1, cbs=VarianceRegularizer(layer='3', labels=1)))
    raises(['labels run from 0 to 2', '2 classes'], lambda: image_learner().fit(1, 1e-3, cbs=VarianceRegularizer(layer='3', labels=1, n_classes=2)))
    image_learner().fit(1, 1e-3, cbs=VarianceRegularizer(layer='3', classwise=False))      # without classes no labels are needed

# The VAE

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

def test_distance_of_features_that_do_not_compare():
    from latentreg_fastai.metrics import frechet_distance
    raises(['frechet_distance', '3 and 4 units'], lambda: frechet_distance(torch.randn(9, 3), torch.randn(9, 4)))
    raises(['frechet_distance', 'NaN'], lambda: frechet_distance(torch.full((9, 3), math.nan), torch.randn(9, 3)))

def test_fit_vae_of_something_else():
    x,y = torch.randn(20, 6),torch.arange(20) % 2
    raises(['fit_vae', '(N, C, H, W)', 'float32', '6'], lambda: fit_vae(tensor_dls((x,y), (x,y), bs=4, device='cpu')), TypeError)
    b = (torch.rand(20,1,8,8)*255).byte()
    raises(['fit_vae', 'uint8'], lambda: fit_vae(tensor_dls((b,y), (b,y), bs=4, device='cpu')), TypeError)

# The drawn digits

def test_rotated_digits_turn():
    "A drawing at an angle is the upright one, turned"
    import torchvision.transforms.v2.functional as TF
    draw = RotatedDigits(28)
    for seven in (0.,1.):
        for angle in (-60.,25.,80.):
            a,b = draw(torch.tensor([[angle/90, 1-seven, seven],[0., 1-seven, seven]]))
            gap = lambda deg: (TF.rotate(b[None], deg, interpolation=TF.InterpolationMode.BILINEAR)[0] - a).abs().mean()
            best = min(range(-90, 91, 5), key=gap)
            assert best == angle and gap(best) < .02     # as torchvision: above 0 to the left

@pytest.mark.parametrize('task', 'ABC')
def test_rotation_tasks(task):
    dls = rotation_dls(task, 400, 800)
    (x,y),(v,w) = ((ds.tensors) for ds in (dls.train_ds, dls.valid_ds))
    deg = lambda t: t[:,0]*90
    side = deg(x) > 0
    assert bool((((deg(x) >= -70) & (deg(x) <= -50)) | ((deg(x) >= 50) & (deg(x) <= 80))).all()) and len(x) == 400 and len(v) == 800 and 120 < int(side.sum()) < 280
    low,high = {'A': ((-30,-10),(10,30)), 'B': ((-30,-20),(-10,30)), 'C': ((-30,30),)*2}[task]
    assert bool((((deg(v) >= low[0]) & (deg(v) <= low[1])) | ((deg(v) >= high[0]) & (deg(v) <= high[1]))).all())
    assert list(dls.vocab) == (['1','7'] if task == 'C' else ['right','left'])     # as the angles, see above
    if task == 'C': assert torch.equal(x[:,2].long(), y.as_subclass(Tensor)) and 120 < int(y.sum()) < 280
    else: assert torch.equal(side.long(), y.as_subclass(Tensor)) and (x[:,2] == 1).all()
    with pytest.raises(ValueError, match="'A', 'B' and 'C'"): rotation_dls('D')

# The runner's other tasks

from latentreg_fastai.bench import *
from latentreg_fastai.bench import run as runner
SMALL = dict(data='digits', data_args=dict(n_train=100, n_valid=100, bs=20), net_args={}, args={}, method='baseline', seed=0, epochs=2, lr=1e-2, points=1)
RUNS = {'reconstruction': dict(task='reconstruction', net='autoencoder', method='cw-VR', args=dict(layer='3', labels=1)), 'gan': dict(task='gan', net='dcgan', net_args=dict(width=8), method='GANMixup', opt='adam_gan', fit='flat', wd=0., measures=['samples']),
        'semi-supervised': dict(net='small_cnn', labeled=20, method='SemiSupervisedMixup', args=dict(weight=10)), 'VarMixup': dict(net='small_cnn', method='VarMixup', vae=dict(epochs=1, width=4, dim=3), measures=['corruptions','strong corruptions']),
        'rotation': dict(data='rotation', data_args=dict(task='C', n_train=40, n_valid=40, bs=20), net='rotation_net', method='ManifoldMixup', args=dict(alpha=1., layers=['draw'], input_mixup=False))}
@pytest.mark.parametrize('name', RUNS)
def test_runs_of_every_task(name, tmp_path):
    "Twice the same figures, whatever the process did before; the baseline's are others; records are JSON and tables can be made of them"
    run = {**SMALL, **RUNS[name]}
    a,b,base = one_run(run),one_run(run),one_run({**run, 'method': 'baseline', 'args': {}})
    figures = [k for k in ('error','nll','ece','brier','judge_error','corruptions','samples') if k in a]
    assert {k: a[k] for k in figures} == {k: b[k] for k in figures} and a['error'] >= 0 and json.loads(json.dumps(a)) == a
    assert a.get('figure') == {'reconstruction': 'MSE × 100', 'gan': 'Fréchet distance'}.get(name)
    if name != 'rotation': assert a['curve'][-1]['train_loss'] != base['curve'][-1]['train_loss']
    t = summary([base, a])
    shown = show_table(t)
    assert (a.get('figure') or 'error %') in shown and ('NLL' in shown) == ('nll' in a) == ('better NLL' in shown) and t.gain[run['method']] == base['error'] - a['error']
    for axs in (plot_table([base, a]), plot_gains({'all': t})): assert any((a.get('figure') or 'error') in s for ax in axs for s in (ax.get_xlabel(), ax.get_ylabel())); plt.close('all')
    assert len(winners(t).splitlines()) == 2 + ('nll' in a) and plot_curves([base, a], col='error').get_ylabel() == (a.get('figure') or 'error %')
    plt.close('all')

def test_reconstruction_is_judged_by_the_pixels():
    run = {**SMALL, **RUNS['reconstruction']}
    learn = trained(run)
    x,pixels,y = (torch.cat(t) for t in zip(*learn.dls.valid))
    learn.model.eval()
    with torch.no_grad(): want = ((learn.model(x) - pixels)**2).double().mean().item()
    close(one_run(run)['error'], 100*want, eps=1e-4)
    assert 0 <= pixels.min() and pixels.max() <= 1 and y.dtype == torch.int64

def test_a_gan_is_judged_by_features():
    "Against the judge's own network and the images themselves"
    from scipy.linalg import sqrtm
    run = {**SMALL, **RUNS['gan']}
    learn,task = trained(run),runner.tasks['gan'](run)
    before = weights(learn),random_state()
    got = task.figures(learn)
    assert same(before[0], weights(learn)) and random_state() == before[1] and got == task.figures(learn) and 0 < got['judge_error'] < 60
    judge,real,_ = runner._judge(json.dumps([run['data'],run['data_args']]))
    with no_random(), torch.no_grad(): images = torch.cat([x for _,x in learn.dls.valid])
    torch.testing.assert_close(judge(images).detach(), real, rtol=1e-3, atol=1e-4)
    with no_random(0), torch.no_grad():
        learn.model.eval()
        fake = torch.cat([judge(learn.model.generator(noise)) for noise,_ in learn.dls.valid])
    m,v = zip(*[(z.double().mean(0).numpy(),np.cov(z.double().numpy(), rowvar=False)) for z in (fake,real)])
    close(got['error'], ((m[0]-m[1])**2).sum() + np.trace(v[0] + v[1] - 2*sqrtm(v[0] @ v[1]).real), eps=got['error']*1e-3)
    import base64, io
    with Image.open(io.BytesIO(base64.b64decode(one_run(run)['samples']))) as im: assert im.size == (8*9+1,8*9+1) and np.ptp(np.asarray(im)) > 50

def test_semi_supervised_run_has_its_labels():
    "Baseline and method have the same hundred labels, batches and start"
    learn = trained({**SMALL, **RUNS['semi-supervised'], 'epochs': 1})
    base = trained({**SMALL, **RUNS['semi-supervised'], 'epochs': 1, 'method': 'baseline', 'args': {}})
    assert len(learn.dls.train_ds) == 20 and torch.equal(learn.dls.train_ds.tensors[0], base.dls.train_ds.tensors[0]) and len(learn.dls.valid_ds) == 100
    said = lambda run: runner._quiet_run({**SMALL, **run})['failed']
    assert 'give `labeled`' in said({**RUNS['semi-supervised'], 'labeled': None}) and 'LabelSmoothing is for other tasks' in said({**RUNS['gan'], 'method': 'LabelSmoothing', 'args': {}})

def test_rows_share_the_autoencoder(monkeypatch):
    "Of the same data and seed; another seed has another"
    made,fit = [],runner.fit_vae
    monkeypatch.setattr(runner, 'fit_vae', lambda *a, **kw: made.append(kw['seed']) or fit(*a, **kw))
    runner._vaes.clear()
    run = {**SMALL, **RUNS['VarMixup'], 'measures': None, 'epochs': 1}
    run.pop('measures')
    for r in (run, {**run, 'args': dict(p=.5)}, {**run, 'seed': 1}): one_run(r)
    assert made == [0,1]

def test_other_levels_of_robustness():
    learn = trained({**SMALL, 'net': 'small_cnn'})
    from latentreg_fastai.robustness import robustness
    with learn.no_bar(): usual,none,strong = (robustness(learn, tests=('gaussian_noise','contrast'), levels=l) for l in (None, dict(gaussian_noise=(0.,)*5), dict(gaussian_noise=(0.,1.,5.))))
    noise = lambda t: t[t.test == 'gaussian_noise']
    assert noise(none).error.tolist() == [none.error[0]]*5 and noise(strong).level.tolist() == [1,2,3] and noise(strong).error.iloc[2] > noise(usual).error.max()
    assert usual[usual.test == 'contrast'].error.tolist() == strong[strong.test == 'contrast'].error.tolist()
    with pytest.raises(ValueError, match="not 'fgsm'"): robustness(learn, levels=dict(fgsm=(1,)))

@pytest.mark.parametrize('base,match', [(dict(task='regression'), ["unknown task 'regression'",'reconstruction']), (dict(labeled=0), ['`labeled`','0']), (dict(labeled='x'), ["'x'"]), (dict(vae=3), ['`vae`','3'])])
def test_suites_of_other_tasks_are_checked(base, match):
    raises(['suite s', *match], lambda: Suite(dict(title='', version=1, base=dict(data='digits', net='small_cnn', epochs=1, **base), lrs=[.01], rows={}), 's'))

def test_speed_of_the_new():
    "The rows beside them, and what has no place there"
    t = speed(['VarMixup','SemiSupervisedMixup'], rounds=1, settings=['MLP, batch 100, TensorDL'])
    col = t.iloc[:,0]
    assert {'VarMixup','baseline + VAE pass','SemiSupervisedMixup','baseline + pseudo-label pass'} <= set(t.index) and (col[['baseline + VAE pass','VarMixup','SemiSupervisedMixup']] > 1).all()
    with pytest.raises(ValueError, match='GANMixup is for a GAN'): speed(['GANMixup'])
