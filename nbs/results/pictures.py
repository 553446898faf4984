"""Train the networks with a bottleneck of two units that `results.pictures` plots

    python nbs/results/pictures.py

writes spirals.npz, mnist2d.npz and pictures.jsonl. The spirals take about ten minutes and MNIST an hour on two cores. An interrupted
run continues where it stopped; delete the files to repeat everything."""
from latentreg_fastai.all import *
from latentreg_fastai.papers import *
from latentreg_fastai.viz import plane
from latentreg_fastai.bench import read_records, versions, write_record
from fastai.vision.all import *

here = Path(__file__).parent
records = here/'pictures.jsonl'
span = 1.3                                               # the spirals lie within ±1, the uniform inputs within ±span

class Noise(Module):
    "Gaussian noise in training"
    def forward(self, x): return x + torch.randn_like(x) if self.training else x

def spirals(n, seed, turns=1.75, noise=.02):
    "Two arms: (n, 2) and the number of the arm"
    g = np.random.default_rng(seed)
    t,y = np.sqrt(g.random(n)),np.arange(n) % 2
    a = 2*np.pi*turns*t + np.pi*y
    x = np.stack([t*np.cos(a), t*np.sin(a)], 1) + noise*g.standard_normal((n, 2))
    return torch.tensor(x, dtype=torch.float32),torch.tensor(y)

at_bottleneck = dict(layers='bottleneck', input_mixup=False)
treatments = {'baseline': {}, 'input mixup': dict(cbs=lambda: MixUp(1.)),
              'manifold mixup': dict(cbs=lambda: ManifoldMixup(1., **at_bottleneck)),
              'noise': dict(noise=True), 'dropout': dict(drop=.5), 'batch normalisation': dict(bn=True)}

def spiral_net(bn=False, drop=0., noise=False, cbs=None):
    net = bottleneck_mlp(2, 2, width=128, before=4, after=3, bn=bn, drop=drop)
    if noise: net.bottleneck.append(Noise())
    return net

def fit(dls, net, seed, epochs, lr, cbs):
    set_seed(seed)
    for dl in dls.loaders: dl.rng.seed(seed)
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=[error_rate, NLL(), ECE()])
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, lr, cbs=cbs and cbs())
        _,error,nll,ece = learn.validate()
    return learn,dict(error=100*error, nll=nll, ece=ece)

@torch.no_grad()
def look(net, x, xlim=None, ylim=None, n=100):
    "Hidden states of `x`, limits around most of them, and the probabilities that the head gives within these limits"
    h = net.bottleneck(net.encoder(x))
    if xlim is None:
        lo,hi = h.quantile(.005, 0),h.quantile(.995, 0)
        lo,hi = lo - .2*(hi-lo),hi + .2*(hi-lo)
        xlim,ylim = ((lo[i].item(),hi[i].item()) for i in (0,1))
    said = net.head(torch.tensor(plane(xlim, ylim, n), dtype=torch.float32)).softmax(1)
    return h,(*xlim,*ylim),said

def save(file, arrays):
    half = lambda a: a.astype(np.float16) if a.dtype == np.float32 else a
    np.savez_compressed(file, **{k: half(np.asarray(v)) for k,v in arrays.items()})

def run_spirals(seeds=range(5)):
    x,y = spirals(2000, 0)
    uniform = (torch.rand(3000, 2, generator=torch.Generator().manual_seed(0))*2 - 1)*span
    done,arrays = {(r['picture'],r['method'],r['seed']) for r in read_records(records)},dict(x=x, y=y)
    for seed,(name,how) in itertools.product(seeds, treatments.items()):
        if ('spirals',name,seed) in done and (here/'spirals.npz').exists(): continue
        set_seed(seed)
        dls = tensor_dls((x,y), spirals(2000, 1), bs=100, device='cpu')
        learn,found = fit(dls, spiral_net(**how), seed, 100, 1e-3, how.get('cbs'))
        net = learn.model.eval()
        with torch.no_grad(): sure = net(uniform).softmax(1).amax(1)
        write_record(records, dict(picture='spirals', method=name, seed=seed, epochs=100, lr=1e-3, **found,
                                   sure_elsewhere=float((sure > .99).float().mean()), versions=versions()))
        if seed: continue
        h,limits,said = look(net, x)
        with torch.no_grad():
            surface = net(torch.tensor(plane((-span,span), (-span,span), 150), dtype=torch.float32)).softmax(1)
            hu = net.bottleneck(net.encoder(uniform))
        arrays |= {f'{name}/{k}': v for k,v in dict(surface=surface, hidden=h, uniform=hu, said=said, limits=np.array(limits)).items()}
    if len(arrays) > 2: save(here/'spirals.npz', arrays)

def run_mnist():
    arrays = dict(np.load(here/'mnist2d.npz')) if (here/'mnist2d.npz').exists() else {}
    for digits in (5,10):
        dls = mnist_dls(device='cpu')
        if digits < 10:
            part = lambda ds: tuple(t[ds.tensors[1] < digits] for t in ds.tensors)
            dls = tensor_dls(part(dls.train_ds), part(dls.valid_ds), vocab=[str(i) for i in range(digits)], bs=100, val_bs=1000,
                             after_batch=list(dls.train.after_batch.fs), device='cpu')
        for name in ('baseline','input mixup','manifold mixup'):
            key = f'{digits}/{name}'
            if f'{key}/hidden' in arrays: continue
            set_seed(0)
            learn,found = fit(dls, bottleneck_mlp(n_out=digits), 0, 10, 1e-3, treatments[name].get('cbs'))
            rec = dict(picture=f'mnist 0-{digits-1}', method=name, seed=0, epochs=10, lr=1e-3, **found, versions=versions())
            write_record(records, rec)
            x,y = (torch.cat(t) for t in zip(*[(x.as_subclass(Tensor),y.as_subclass(Tensor)) for x,y in learn.dls.valid]))
            h,limits,said = look(learn.model.eval(), x)
            arrays |= {f'{key}/{k}': v for k,v in dict(hidden=h, y=y.byte(), said=said, limits=np.array(limits)).items()}
            save(here/'mnist2d.npz', arrays)

if __name__ == '__main__':
    torch.set_num_threads(1)
    for run in (run_spirals,run_mnist): run()
