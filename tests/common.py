"What the tests share: small learners, the callbacks of the collection, and what may be compared."
from fastai.vision.all import *
from fastcore.test import test_close as close
from fastai.vision.gan import GANLearner,FixedGANSwitcher
from latentreg_fastai.all import *
from latentreg_fastai.models import critic_loss,generator_loss

for n in [n for n in globals() if n == 'test' or n.startswith('test_')]: del globals()[n]   # fastcore's helpers are not tests

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

def weights(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def hooks(model): return [h for m in model.modules() for d in (m._forward_hooks, m._forward_pre_hooks) for h in d.values()]

def random_state(): return random.getstate(), tuple(map(str, np.random.get_state())), torch.get_rng_state().tolist()

class Probe(Callback):
    "Calls functions at events: `Probe(after_batch=lambda learn: ...)`, with `order` last unless told otherwise"
    def __init__(self, order=1000, run_valid=True, **fs):
        self.order,self.run_valid = order,run_valid
        for event,f in fs.items(): object.__setattr__(self, event, partial(self._call, f))
    def _call(self, f): return f(self.learn)

def plain(o):
    "A name for a parameter that is the same in each of pytest's processes"
    return re.sub(r' at 0x\w+', '', str(o))
