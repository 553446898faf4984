"What the tests share: small learners, the callbacks of the collection, and what may be compared."
from fastai.vision.all import *
from fastcore.test import test_close
from fastai.vision.gan import GANLearner,FixedGANSwitcher
import pytest
from latentreg_fastai.all import *
from latentreg_fastai.callback.core import *
from latentreg_fastai.callback.terms import *
from latentreg_fastai.checks import *
from latentreg_fastai.layers import *
from latentreg_fastai.signal import *
from latentreg_fastai.papers import *
from latentreg_fastai.stats import *
from latentreg_fastai.viz import *
from latentreg_fastai.robustness import *

# Comparisons

def close(a, b, eps=1e-5):
    "fastcore's `test_close` of sequences of one length; by itself it goes as far as the shorter, and an empty one is close to all"
    lens = [len(o) for o in (a,b) if isinstance(o, collections.abc.Sized) and getattr(o, 'ndim', 1)]
    assert 0 not in lens and len(set(lens)) < 2, lens
    test_close(a, b, eps)

def raises(match, f, exc=ValueError):
    "`f` fails with a message that holds all of `match`; the message"
    with pytest.raises(exc) as e: f()
    for m in match: assert m in str(e.value), f'{m!r} is not in {e.value}'
    return str(e.value)

def weights(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def hooks(model): return [h for m in model.modules() for d in (m._forward_hooks, m._forward_pre_hooks) for h in d.values()]
def module_state(m): return {k: v.clone() for k,v in m.state_dict().items()}, {n: s.training for n,s in m.named_modules()}, [p.requires_grad for p in m.parameters()]
def same_state(a, b): return same(a[0], b[0]) and a[1:] == b[1:]
def random_state(): return random.getstate(), tuple(map(str, np.random.get_state())), torch.get_rng_state().tolist()

def plain(o):
    "A name for a parameter that is the same in each of pytest's processes"
    return re.sub(r' at 0x\w+', '', str(o))

NAN = float('nan')

# Small networks, data and learners

class TinyVAE(nn.Module):
    def __init__(self): super().__init__(); self.enc,self.dec = nn.Linear(64, 5),nn.Linear(5, 64)
    def encode(self, x): return self.enc(x.flatten(1))
    def decode(self, z): return self.dec(z).view(-1, 1, 8, 8)

def data(n=24, n_classes=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % n_classes
    return torch.randn(n, 1, 8, 8, generator=g) + y[:,None,None,None].float(), y

with no_random(): VAE,UNLABELED = TinyVAE(),DataLoader(list(zip(*data(20, seed=3))), bs=8, shuffle=True, num_workers=0)

# Every callback of the collection. A new one is one line: its name, what makes it, what makes it do nothing (or None).
CALLBACKS = {
    'ManifoldMixup':          (lambda: ManifoldMixup(),                                None),
    'ManifoldMixup all':      (lambda: ManifoldMixup(layers='all', per_item=True),     None),
    'ManifoldMixup stop':     (lambda: ManifoldMixup(stop_grad=True, alpha=1.),        None),
    'cw-VR':                  (lambda: VarianceRegularizer(3.),                        lambda: VarianceRegularizer(0.)),
    'VR':                     (lambda: VarianceRegularizer(3., classwise=False),       lambda: VarianceRegularizer(0., classwise=False)),
    'cw-CR':                  (lambda: CovarianceRegularizer(3.),                      lambda: CovarianceRegularizer(0.)),
    'CR':                     (lambda: CovarianceRegularizer(3., classwise=False),     lambda: CovarianceRegularizer(0., classwise=False)),
    'ActivationL1':           (lambda: ActivationL1(.1),                               lambda: ActivationL1(0.)),
    'Phantom':                (lambda: PhantomEmbedding(),                             lambda: PhantomEmbedding(k=1)),
    'Phantom k=3':            (lambda: PhantomEmbedding(3, layer='2'),                 lambda: PhantomEmbedding(1, layer='2')),
    'Phantom batch':          (lambda: PhantomEmbedding(3, source='batch', alpha=.5),  lambda: PhantomEmbedding(1, source='batch')),
    'Phantom naive':          (lambda: PhantomEmbedding(naive=True),                   lambda: PhantomEmbedding(1, naive=True)),
    'ITRA-c':                 (lambda: ITRA(warmup=0.),                                lambda: ITRA(0.)),
    'ITRA-c warm-up':         (lambda: ITRA(matched=True),                             lambda: ITRA(0., matched=True)),
    'ITRA separate':          (lambda: ITRA(3., False, separate=True, warmup=0.),      lambda: ITRA(0., False, separate=True)),
    'ITRA-c split':           (lambda: ITRA(source='split', warmup=0.),                lambda: ITRA(0., source='split')),
    'ITRA-c queue':           (lambda: ITRA(source='queue', warmup=0.),                lambda: ITRA(0., source='queue')),
    'CenterLoss':             (lambda: CenterLoss(),                                   lambda: CenterLoss(0.)),
    'DisturbLabel':           (lambda: DisturbLabel(.5),                               lambda: DisturbLabel(0.)),
    'WeightL1':               (lambda: WeightL1(1e-3),                                 lambda: WeightL1(0.)),
    'WeightDecay':            (lambda: WeightDecay(5.),                                lambda: WeightDecay(.01)),      # as the optimizer has it
    'DropoutRate':            (lambda: DropoutRate(.6),                                lambda: DropoutRate(.2)),       # as the network has it
    'VarMixup':               (lambda: VarMixup(VAE),                                  lambda: VarMixup(VAE, p=0.)),
    'VarMixup p=.5':          (lambda: VarMixup(VAE, p=.5),                            None),
    'SemiSupervised':         (lambda: SemiSupervisedMixup(UNLABELED, weight=3., rampup=0.), None),
    'SemiSupervised input':   (lambda: SemiSupervisedMixup(UNLABELED, layers=[], rampup=0.), None),
    'GANMixup':               (lambda: GANMixup(weight=3.),                            lambda: GANMixup(weight=0.)),
    'GANMixup input':         (lambda: GANMixup(layers=[], alpha=1.),                  lambda: GANMixup(weight=0., layers=[])),
    'LatentMonitor':          (lambda: LatentMonitor(2),                               lambda: LatentMonitor(1)),   # watching changes nothing
    'cw-VR on a feature map': (lambda: VarianceRegularizer(3., layer='0'),             lambda: VarianceRegularizer(0., layer='0')),
}
CAN_BE_OFF = [k for k,(_,off) in CALLBACKS.items() if off]
PENALTIES  = [k for k,(f,_) in CALLBACKS.items() if isinstance(f(), WeightedTerm)]   # have a weight
ONLY_WATCH = ['LatentMonitor']                                                        # training is the same with them
ONLY_SET   = ['WeightDecay','DropoutRate']                                              # a setting is another, and a step is the same work
SOMETIMES  = ['VarMixup p=.5']                                                        # act in some batches and leave the others alone
ADD_ROWS   = [k for k in CALLBACKS if k.startswith(('Phantom','SemiSupervised')) or k in ('ITRA-c','ITRA-c warm-up','ITRA separate')]
DRAW_LAYER = [k for k in CALLBACKS if k.startswith(('ManifoldMixup','SemiSupervised','GANMixup'))]   # one for each batch
OF_A_GAN   = [k for k in CALLBACKS if k.startswith('GANMixup')]                       # their learner is another
OF_A_NET   = [k for k in CALLBACKS if k not in OF_A_GAN]

def net():
    "Small, but with all that a callback can disturb: batch normalisation, dropout, a feature map, hidden layers"
    return nn.Sequential(ConvLayer(1, 4, stride=2), nn.Flatten(), nn.Sequential(nn.Linear(64, 8), nn.ReLU()), nn.Dropout(.2),
                         nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3))

def new_learner(cbs=None, model=None, dls=None, seed=0, **kwargs):
    "A learner whose start and batches depend on `seed` alone"
    set_seed(seed)
    dls = dls or tensor_dls(data(), data(12, seed=1), bs=8, device='cpu')
    learn = Learner(dls, net() if model is None else model, **{'loss_func': CrossEntropyLossFlat(), 'metrics': accuracy, 'cbs': cbs, **kwargs})
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

class Generator(nn.Module):
    def __init__(self): super().__init__(); self.layers = nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64), nn.Tanh())
    def forward(self, z): return self.layers(z).view(-1, 1, 8, 8)

def gan_net(): return Generator(),nn.Sequential(ConvLayer(1, 4, stride=2), ConvLayer(4, 8, stride=2), nn.Flatten(), nn.Linear(32, 1))

def gan_learner(cbs=None, model=None, dls=None, seed=0, **kwargs):
    "As `new_learner`, of a GAN"
    set_seed(seed)
    noise = lambda n: torch.randn(n, 4, generator=torch.Generator().manual_seed(n))
    dls = dls or tensor_dls((noise(24),data()[0]), (noise(12),data(12, seed=1)[0]), bs=8, device='cpu')
    learn = GANLearner(dls, *(model or gan_net()), generator_loss, critic_loss, switcher=FixedGANSwitcher(n_crit=1, n_gen=1), switch_eval=False, cbs=cbs, **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def learner_of(name): return gan_learner if name in OF_A_GAN else new_learner

def restart(learn, seed=0):
    "Put weights, optimizer, loaders and random state of a `new_learner` or `gan_learner` back to its start; the learner's own state stays"
    fresh = (gan_learner if hasattr(learn, 'gan_trainer') else new_learner)(seed=seed)
    learn.model.load_state_dict(fresh.model.state_dict())
    learn.model.train()
    for p,its in zip(learn.model.parameters(), fresh.model.parameters()): p.grad = None; p.requires_grad_(its.requires_grad)
    learn.opt = None
    for mine,its in zip(learn.dls.loaders, fresh.dls.loaders): mine.rng.setstate(its.rng.getstate())
    return learn                                         # the global random state is that after a `new_learner`

class Probe(Callback):
    "Calls functions at events: `Probe(after_batch=lambda learn: ...)`, with `order` last unless told otherwise"
    def __init__(self, order=1000, run_valid=True, **fs):
        self.order,self.run_valid = order,run_valid
        for event,f in fs.items(): object.__setattr__(self, event, partial(self._call, f))
    def _call(self, f): return f(self.learn)

def refused(match, learn, cbs, exc=ValueError, trained=False):
    "The fit fails with a message that holds all of `match`, and leaves the learner as it was"
    before,loss,loader,model,mine = [p.clone() for p in learn.model.parameters()],learn.loss_func,learn.dls.train,learn.model,list(learn.cbs)
    raises(match, lambda: learn.fit(1, 1e-2, cbs=cbs), exc)
    assert learn.loss_func is loss and learn.dls.train is loader and learn.model is model and list(learn.cbs) == mine and not hooks(model)
    if trained: return                                   # it was noticed at the end of an epoch
    assert all(torch.equal(*p) for p in zip(learn.model.parameters(), before))

def one_step(dls, model, cbs=None):
    "Names of the tensors that one step of training changes"
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=cbs)
    before = {n: p.detach().clone() for n,p in model.named_parameters()}
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=ShortEpochCallback(pct=0., short_valid=True))
    assert all(p.isfinite().all() for p in model.parameters())
    return {n for n,p in model.named_parameters() if not torch.equal(p, before[n])}

class Cut(Callback):
    "Ends the fit before its third epoch"
    def before_epoch(self):
        if self.epoch == 2: raise CancelFitException

# Methods against their papers: mixing, losses and gradients worked by hand

def tanh_net(): set_seed(0); return nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.Tanh(), nn.Linear(8,3))
def linear_net(): set_seed(0); return nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.Linear(8,3))
def bn_net(): set_seed(0); return nn.Sequential(ConvLayer(1, 4, stride=2), nn.Flatten(), nn.Linear(64,8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8,3))   # no dropout: nothing is drawn

def mixed(t, lam, shift):
    "Each row mixed with its partner, without roll or lerp; `lam` is one number or one a row"
    lam = lam if isinstance(lam, Tensor) else [lam]*len(t)
    return torch.stack([lam[i]*t[i] + (1-lam[i])*t[(i-shift) % len(t)] for i in range(len(t))])

def grads(loss, model): return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

def as_by_hand(l, loss, gs):
    "`loss` is what was differentiated, and `gs`, or its gradients in the copy `gs` of the network, are those of the network"
    if isinstance(gs, nn.Module): gs = grads(loss, gs)
    torch.testing.assert_close(l.loss_grad.detach().as_subclass(Tensor), loss.detach(), rtol=1e-5, atol=1e-6)
    for p,g in zip(l.model.parameters(), gs, strict=True):
        torch.testing.assert_close(torch.zeros_like(p) if p.grad is None else p.grad, torch.zeros_like(p) if g is None else g, rtol=1e-4, atol=1e-6)

def step(check):
    """Callbacks that call `check(learn, x, y)` in each training batch once the gradients are there; x and y are all rows the loader gave.
    `copy_of(learn)` is then the network as it was before its forward pass."""
    rows,calls = {},[]
    def fit(l): object.__setattr__(l, 'twin', deepcopy(l.model))                      # before there are hooks
    def before(l): rows.update(x=l.x.clone(), y=l.y.clone()); object.__setattr__(l, 'was', weights(l))
    def after(l): check(l, rows['x'], rows['y']); calls.append(1)
    return [Probe(order=-9, run_valid=False, before_fit=fit, before_batch=before), Probe(order=20, run_valid=False, after_backward=after)],calls

def copy_of(l):
    m = deepcopy(l.twin)
    m.load_state_dict(l.was)
    return m.train()

# Loaders: items that count how often they are read, images on the disk, tables

LABELS = [0,1,2,0,1,0,3,0,1,1,2,0,1,0,0,1]         # classes of 7, 6, 2 and 1, and 16 samples

class Items:
    "A data set of (number, label) that counts what is read, as torch's are"
    def __init__(self, ys=LABELS): self.targets,self.reads = list(ys),[]
    def __len__(self): return len(self.targets)
    def __getitem__(self, i):
        if i >= len(self): raise IndexError(i)
        self.reads.append(i)
        return tensor(float(i)), tensor(self.targets[i])

def loader_of(ds=None, bs=4, shuffle=True, seed=3, cls=TfmdDL, num_workers=0, **kwargs):
    "A loader whose order depends on `seed` alone"
    random.seed(seed)
    np.random.seed(seed)
    return cls(Items() if ds is None else ds, bs=bs, shuffle=shuffle, num_workers=num_workers, **kwargs)

def numbered(n=len(LABELS), ys=LABELS): return torch.arange(n).float(), tensor(list(ys))
def numbers(dl): return [(b[0].long().tolist(), b[1].long().tolist()) for b in dl]
def epochs(dl, n=3): return [numbers(dl) for _ in range(n)]

def check_epoch(bs, k, y=LABELS, whole=True, n=None):
    "One epoch of `batches`: what holds for every loader of clusters"
    n = len(y) if n is None else n
    seen = []
    for b,(x,labels) in enumerate(bs):
        assert len(x) % k == 0 and labels == [y[i] for i in x]
        for c in (x[i:i+k] for i in range(0, len(x), k)):
            mine = [i for i in range(len(y)) if y[i] == y[c[0]]]
            assert {y[i] for i in c} == {y[c[0]]}
            if len(mine) >= k: assert len(set(c)) == k
            elif len(mine) > 1: assert c[0] not in c[1:]
            else: assert c == [c[0]]*k
            seen.append(c[0])
    assert len(set(seen)) == len(seen) and (sorted(seen) == list(range(n)) or not whole)

CLASSES = ['ant','bee','cow']

def image_folder(path, n=6, size=10):
    "`n` images a class, in two parts; pixel value tells the image"
    rng = np.random.default_rng(0)
    for part in ('train','valid'):
        for j,c in enumerate(CLASSES):
            (path/part/c).mkdir(parents=True)
            for i in range(n): PILImage.create(rng.integers(0, 256, (size,size,3), dtype=np.uint8)).save(path/part/c/f'{i}.png')
    return path

class CountedImage(PILImage):
    opened = 0
    @classmethod
    def create(cls, fn, **kwargs):
        CountedImage.opened += 1
        return super().create(fn, **kwargs)

def image_block(**kwargs):
    return DataBlock((ImageBlock(CountedImage), CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=GrandparentSplitter(), **kwargs)

def frame(n=30):
    rng = np.random.default_rng(0)
    return pd.DataFrame(dict(row=np.arange(n, dtype=float), shape=rng.choice(['round','flat'], n), kind=[CLASSES[i%3] for i in range(n)],
                             grade=rng.random(n), a=np.arange(n)%2, b=np.arange(n)//2%2))

def items_dls(items, bs=8): return DataLoaders.from_dsets(items, items, bs=bs, num_workers=0)

class Silent:
    "A data set that does not tell its targets without reading items"
    def __init__(self, n=24): self.x,self.y = data(n)
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i],self.y[i]

# Images of which no two pixels are the same

NAMES = ['cat', 'dog', 'eel', 'fox']

def images(n=20, c=1, h=6, w=6, seed=0, cls=TensorImage):
    "Images of which no two pixels are the same, and labels"
    g = torch.Generator().manual_seed(seed)
    return cls(torch.randperm(n*c*h*w, generator=g).view(n,c,h,w).float()), TensorCategory(torch.arange(n)%4)

def image_dls(n=20, vocab=NAMES, bs=8, **kwargs):
    return tensor_dls(images(n), images(n, seed=1), vocab=vocab, bs=bs, device='cpu', **kwargs)

def equal(a, b): return len(a) == len(b) and all(type(s) is type(t) and torch.equal(s, t) for s,t in zip(a, b))

def same_pixels(a, b): return (a.as_subclass(Tensor).int() - b.as_subclass(Tensor).int()).abs().max() <= 1   # fastai's decode rounds down
def quietly(learn, f):
    with learn.no_bar(), learn.no_logging(): return f()

# Interpretation and terms

def uneven_learner(n=26, seed=0, **kwargs):
    "A `new_learner` with 12 validation samples of unbalanced classes, in batches of 5, and training samples that do not fill the last batch"
    (x,y),(vx,_) = data(n),data(12, seed=1)
    vy = tensor([0,0,0,0,0,1,1,1,2,2,2,2])[torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    return new_learner(dls=tensor_dls((x,y), (vx,vy), vocab=['ant','bee','cow'], bs=8, val_bs=5, device='cpu'), seed=seed, **kwargs)

# What is drawn: points by place and colour

def points(ax): return Counter((*np.float32(o).tolist(),plt.matplotlib.colors.to_hex(c)) for o,c in zip(ax.collections[0].get_offsets().data, ax.collections[0].get_facecolors()))
def expected(xy, y, n): return Counter((*np.float32(o).tolist(),colors_for(n)[int(k)].lower()) for o,k in zip(np.asarray(xy), y))

def finite(learn, k): v = np.array(learn.recorder.terms[k]); return np.isfinite(v).nonzero()[0],v[np.isfinite(v)]
