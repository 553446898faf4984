"""Run the experiments that `results.theory` shows

    python nbs/results/theory.py

writes theory.jsonl (the figures of every run) and theory.npz (the arrays that are plotted for the first seed). It takes about ten
minutes on two cores. An interrupted run continues where it stopped; delete the files to repeat everything."""
from latentreg_fastai.all import *
from latentreg_fastai.papers import *
from latentreg_fastai.robustness import PixelSpace
from latentreg_fastai.stats import median_bandwidth
from latentreg_fastai.bench import read_records, versions, write_record
from fastai.vision.all import *

here = Path(__file__).parent
file,drawn = here/'theory.jsonl',here/'theory.npz'
seeds = range(5)

def learner(train, valid, net, seed, loss=None, bs=100):
    dls = tensor_dls(train, valid, bs=bs, device='cpu')
    set_seed(seed)
    dls.train.rng.seed(seed)
    learn = Learner(dls, net, loss_func=loss or CrossEntropyLossFlat(), metrics=[] if loss else [error_rate])
    learn.remove_cb(ProgressCallback)
    return learn

def fit(learn, epochs, lr, cbs=None):
    with learn.no_logging(): learn.fit_one_cycle(epochs, lr, cbs=cbs)
    learn.model.eval()
    return learn

def keep(arrays):
    old = dict(np.load(drawn)) if drawn.exists() else {}
    np.savez_compressed(drawn, **old, **{k: np.asarray(v) for k,v in arrays.items()})

# Two modes per class (ITRA, "Accommodating multi-modalities")

narrow = lambda d: .1*median_bandwidth(d)
at = dict(layer='bottleneck')
ways = {'baseline': lambda: None, 'ITRA-c': lambda: ITRA(.6, **at), 'ITRA-c, σ a tenth': lambda: ITRA(.6, sigma=narrow, **at),
        'ITRA-c, weight 3': lambda: ITRA(3., **at), 'ITRA-c, weight 3, σ a tenth': lambda: ITRA(3., sigma=narrow, **at),
        'centre loss 0.01': lambda: CenterLoss(.01, **at), 'centre loss 0.1': lambda: CenterLoss(.1, **at)}

def blobs(n, seed):
    "Points around the corners of a square, their classes (opposite corners are one class) and their corners"
    g,m = np.random.default_rng(seed),np.arange(n) % 4
    x = np.array([[-1,-1],[1,1],[-1,1],[1,-1]])[m] + .25*g.standard_normal((n, 2))
    return torch.tensor(x, dtype=torch.float32),torch.tensor(m//2),torch.tensor(m)

def two_modes(dim, way, seed):
    "Train features to separate the four corners, then continue with two classes"
    (x,y,m),(v,w,n) = blobs(1000, 0),blobs(1000, 1)
    set_seed(seed)
    fine = fit(learner((x,m), (v,n), bottleneck_mlp(2, 4, 64, after=1, dim=dim), seed), 10, 3e-3)
    set_seed(seed)
    net = bottleneck_mlp(2, 2, 64, after=1, dim=dim)
    net.encoder,net.bottleneck = fine.model.encoder,fine.model.bottleneck
    learn = fit(learner((x,y), (v,w), net, seed), 40, 3e-3, ways[way]())
    with torch.no_grad(): h = net.bottleneck(net.encoder(v))
    means = torch.stack([h[n == k].mean(0) for k in range(4)])
    within = torch.stack([(h[n == k] - means[k]).norm(dim=1).mean() for k in range(4)]).mean()
    modes,classes = ((means[0]-means[1]).norm() + (means[2]-means[3]).norm())/2,torch.cdist(means[:2], means[2:]).mean()
    figures = dict(error=100*learn.validate()[1], modes_to_classes=float(modes/classes), modes_to_within=float(modes/within))
    return figures,dict(h=h, y=w, m=n)

# The spectrum of a class (Manifold Mixup, Theorem 1 and Corollary 1)

def spectrum(dim, loss, mixup, seed):
    "Within-class variance of digits at a bottleneck of `dim` units, by principal direction, as shares of the total variance"
    digits = digits_dls(n_train=1000, seed=seed, device='cpu')
    def split(ds):
        x,y = (t.as_subclass(Tensor) for t in ds.tensors)
        return (x.float()/255 - .305)/.376,F.one_hot(y, 10).float() if loss == 'squared error' else y
    set_seed(seed)
    net,loss_func = bottleneck_mlp(64, 10, 256, after=1, dim=dim),MSELossFlat() if loss == 'squared error' else None
    learn = learner(split(digits.train_ds), split(digits.valid_ds), net, seed, loss_func)
    fit(learn, 60, 5e-3, ManifoldMixup(1., layers='bottleneck', input_mixup=False) if mixup else None)
    y = digits.train_ds.tensors[1].as_subclass(Tensor)
    with torch.no_grad(): h = learn.model.bottleneck(learn.model.encoder(learn.dls.train_ds.tensors[0])).double()
    means,total = torch.stack([h[y == k].mean(0) for k in range(10)]),(h - h.mean(0)).square().sum(1).mean()
    basis = torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh[:9]      # the directions in which classes differ
    away = h - means[y]
    spec = torch.stack([torch.linalg.svdvals(away[y == k]).square()/(y == k).sum() for k in range(10)]).mean(0)/total
    within,along = away.square().sum(1).mean()/total,(away@basis.T).square().sum(1).mean()/total
    return dict(within=float(within), along_means=float(along), spectrum=spec.tolist()),{}

# A decoder of hidden states (Manifold Mixup, Section 6)

class Decoder(nn.Sequential):
    "Turn a hidden state into a 28×28 image"
    def __init__(self, shape):
        start = [nn.Flatten(), nn.Linear(math.prod(shape), 32*49), nn.ReLU(), nn.Unflatten(1, (32,7,7))]
        up = lambda i,o: [nn.Upsample(scale_factor=2), ConvLayer(i, o)]
        super().__init__(*start, *up(32, 32), *up(32, 16), nn.Conv2d(16, 1, 3, padding=1), nn.Sigmoid())

def decoded():
    "Mix six pairs of test digits in pixels and in hidden states of a classifier trained with Manifold Mixup, and decode them"
    set_seed(0)
    dls = mnist_dls(n_train=20000, bs=100, device='cpu')
    net = nn.Sequential(OrderedDict(stage1=nn.Sequential(ConvLayer(1, 16), ConvLayer(16, 16, stride=2)),
                                    stage2=nn.Sequential(ConvLayer(16, 32), ConvLayer(32, 32, stride=2)),
                                    hidden=nn.Sequential(nn.Flatten(), nn.Linear(32*49, 64), nn.ReLU()), out=nn.Linear(64, 10)))
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=error_rate)
    learn.remove_cb(ProgressCallback)
    fit(learn, 5, 5e-3, ManifoldMixup(2., layers=['stage1','stage2','hidden']))
    error = 100*learn.validate()[1]
    space = PixelSpace(dls.valid)
    @torch.no_grad()
    def states(dl, at):
        batches = [(net[:at](x.as_subclass(Tensor)),space.to(x),y.as_subclass(Tensor)) for x,y in sampled_dl(dl)]
        return tuple(torch.cat(t) for t in zip(*batches))
    def mixed(a, i, j): return torch.stack([torch.lerp(a[i], a[j], l) for l in lams])
    figures,arrays,lams = dict(error=error),{},torch.linspace(0, 1, 9)
    for name,at in (('stage2',2),('hidden',3)):
        (h,x,_),(v,w,y) = states(dls.train, at),states(dls.valid, at)
        set_seed(0)
        dec = fit(learner((h,x), (v,w), Decoder(h.shape[1:]), 0, MSELossFlat()), 8, 5e-3)
        figures[f'{name} mse'] = float(dec.validate()[0])
        pick = [(int((y == a).nonzero()[40]),int((y == b).nonzero()[41])) for a,b in ((0,6),(4,9),(3,8),(1,7),(2,2),(5,3))]
        with torch.no_grad(): arrays[name] = np.stack([(dec.model(mixed(v, i, j))*255).byte()[:,0] for i,j in pick])
        arrays['pixels'] = np.stack([(mixed(w, i, j)*255).byte()[:,0] for i,j in pick])
        with torch.no_grad():      # the classifier's probabilities for mixed hidden states and for mixed pixels
            arrays[f'{name} said'] = np.stack([net[at:](mixed(v, i, j)).softmax(1).half() for i,j in pick])
            arrays['pixels said'] = np.stack([net(space.back(mixed(w, i, j))).softmax(1).half() for i,j in pick])
    return figures,{f'decoder/{k}': v for k,v in arrays.items()}

if __name__ == '__main__':
    torch.set_num_threads(1)
    todo = [('two modes',dict(dim=d, way=w, seed=s),two_modes) for s in seeds for d in (2,8) for w in ways]
    todo += [('spectrum',dict(dim=d, loss=l, mixup=m, seed=s),spectrum)
             for s in seeds for d in (9,16,32) for l in ('squared error','cross-entropy') for m in (False,True)]
    todo += [('decoder',{},decoded)]
    done = [{k: r[k] for k in ('part','args')} for r in read_records(file)]
    for part,args,f in todo:
        if dict(part=part, args=args) in done: continue
        figures,arrays = f(**args)
        if part == 'two modes':
            of_first = arrays.items() if args['seed'] == 0 else ()
            arrays = {f"modes/{args['dim']}/{args['way']}/{k}": v.half() if v.is_floating_point() else v.byte() for k,v in of_first}
        if arrays: keep(arrays)
        write_record(file, dict(part=part, args=args, **figures, versions=versions()))
        print(part, args, {k: v if isinstance(v, list) else round(v, 3) for k,v in figures.items() if k != 'spectrum'}, flush=True)
