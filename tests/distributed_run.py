"What `test_distributed.py` launches: trains on two processes, and writes what each of them saw to a folder, one file a check and rank."
import gc, itertools, sys, traceback
from common import *
from fastai.distributed import *
from datetime import timedelta

TIMEOUT = timedelta(seconds=20)                           # how long one rank waits for the other
RANDOM  = ['ManifoldMixup','ManifoldMixup all','VarMixup','SemiSupervised','Phantom','Phantom k=3','Phantom batch','ITRA-c warm-up','DisturbLabel']
VOCAB   = ['a','b','c']
SIZES   = [(48,8,True), (29,4,True), (26,4,False), (25,4,False), (27,4,False), (7,8,False)]   # training samples, batch size, drop_last
BOTH    = {'Phantom beside cw-VR': lambda: [PhantomEmbedding(), VarianceRegularizer(3.)],
           'CenterLoss beside CR': lambda: [CenterLoss(), CovarianceRegularizer(3.)]}
PAIRED  = {'ITRA-c matched': lambda: ITRA(matched=True, warmup=0.), **{n: CALLBACKS[n][0] for n in ADD_ROWS if n != 'Phantom batch' and not n.startswith('SemiSupervised')}}

# On a network without noise, what the terms and gradients of two ranks can be computed from
EXACT   = {'cw-VR':          lambda: VarianceRegularizer(3.),
           'VR':             lambda: VarianceRegularizer(3., classwise=False),
           'cw-CR':          lambda: CovarianceRegularizer(3.),
           'CR':             lambda: CovarianceRegularizer(3., classwise=False),
           'ActivationL1':   lambda: ActivationL1(3.),
           'WeightL1':       lambda: WeightL1(.1),
           'CenterLoss':     lambda: CenterLoss(3.),
           'ITRA-c':         lambda: ITRA(3., warmup=0.),
           'ITRA':           lambda: ITRA(3., False, warmup=0.),
           'ITRA-c separate':lambda: ITRA(3., warmup=0., separate=True),
           'ITRA-c split':   lambda: ITRA(3., source='split', warmup=0.),
           'ITRA split':     lambda: ITRA(3., False, source='split', warmup=0., squared=True),
           'ITRA-c queue':   lambda: ITRA(3., source='queue', warmup=0., queue_len=2),
           'Phantom':        lambda: PhantomEmbedding(3, alpha=.5),
           'Phantom naive':  lambda: PhantomEmbedding(naive=True)}

def plain_net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
def no_loss(pred, y): return pred.sum()*0                 # leaves the gradient to the callback

def loaders(n, bs=8, drop_last=False, double=False, k=None, tensors=True):
    "A shuffled training loader of `n` samples, of micro-clusters with `k`, of single items without `tensors`; and one for validation"
    (x,y),valid = data(n),data(12, seed=1)
    if double: x,valid = x.double(),(valid[0].double(),valid[1])
    args = dict(bs=bs, shuffle=True, drop_last=drop_last)
    train = TensorDL((x,y), vocab=VOCAB, **args) if tensors else TfmdDL(list(zip(x, y)), num_workers=0, **args)
    return DataLoaders(train if k is None else MicroClusterDL(train, k), TensorDL(valid, bs=16, vocab=VOCAB), device='cpu')

def rows(cb, n, seen, cancel=False):
    "Notes in `seen` which samples each training batch holds, before any callback but that of its rows has touched it; `cancel` trains on none"
    number = {x.numpy().tobytes(): i for i,x in enumerate(data(n)[0])}
    ids = lambda xb: [number[x.numpy().tobytes()] for x in xb[0]]
    def note(learn):
        if not learn.training: return
        more = None if isinstance(cb, SemiSupervisedMixup) else getattr(getattr(cb, 'rows', None), 'inputs', None)   # whose others are of another set
        seen.append(dict(epoch=learn.epoch, i=learn.iter, n_iter=learn.n_iter, main=ids(learn.xb), y=learn.yb[0].tolist(), n=getattr(getattr(cb, 'rows', None), 'n_own', None) or 0,
                         more=None if more is None else ids(more), y_more=None if more is None else cb.rows.targets[0].tolist()))
        if cancel: raise CancelBatchException
    return Probe(order=1.5, before_batch=note)

def fit(learn, cbs):
    with learn.distrib_ctx(sync_bn=False, cpu=True): learn.fit(2, 1e-2, cbs=cbs)

def train(cbs, n=48, seed=0, cancel=False, **kwargs):
    "What a fit of 2 epochs on `n` samples gives and leaves"
    seen,cbs,dls = [],L(cbs),loaders(n, **{'drop_last': True, **kwargs})
    own = list(dls.loaders)
    learn = new_learner(dls=dls, seed=seed)
    fit(learn, [*cbs, rows(first(cbs), n, seen, cancel)])
    left = dict(wrapped=isinstance(learn.model, nn.parallel.DistributedDataParallel), hooks=len(hooks(learn.model)),
                callbacks=[cb.name for cb in learn.cbs if isinstance(cb, (LayerCallback,TermRecorder))], loaders=[a is b for a,b in zip(learn.dls.loaders, own)])
    return dict(weights=weights(learn), rows=seen, left=left, terms=getattr(learn.recorder, 'terms', {}))

def steps(name):
    "Of each step of two epochs: the batch, the weights before, the term, the gradient after the ranks were averaged, the centres after"
    cb,res = EXACT[name](),[]
    set_seed(0)
    learn = new_learner(dls=loaders(24, bs=4, double=True), model=plain_net(), loss_func=F.cross_entropy if name.startswith('Phantom') else no_loss, metrics=None)
    learn.remove_cb(Recorder)                             # its smooth loss is in single precision
    def before(learn):
        if not learn.training: return
        more = getattr(getattr(cb, 'rows', None), 'inputs', None)
        res.append(dict(x=learn.xb[0], y=learn.yb[0], x2=more and more[0], y2=more and cb.rows.targets[0], weights={k: v.clone() for k,v in learn.model.module.state_dict().items()}))
    def after(learn):
        res[-1].update(term=cb.term, grad=[p.grad.clone() for p in learn.model.module.parameters()], share=getattr(cb, 'share', None))
    def moved(learn):                                     # once the step is taken
        if learn.training: res[-1].update(centers=cb.centers.clone() if isinstance(cb, CenterLoss) else None)
    fit(learn, [cb, Probe(order=1.5, before_batch=before), Probe(before_step=after, after_batch=moved)])
    return res

def checks():
    for name in OF_A_NET: yield f'fit {name}', partial(train, CALLBACKS[name][0]())
    yield 'fit none', partial(train, [])                  # not the first: a process's first distributed fit draws other random numbers
    for name in BOTH:      yield f'fit {name}', partial(train, BOTH[name]())
    for name in RANDOM:    yield f'seeds {name}', partial(train, CALLBACKS[name][0](), seed=rank_distrib())
    for name in EXACT:     yield f'exact {name}', partial(steps, name)
    for name,make in PAIRED.items():
        for n,bs,drop in SIZES: yield f'rows {name} {n}', partial(train, make(), n, bs=bs, drop_last=drop, cancel=True)
    yield 'items Phantom', partial(train, PhantomEmbedding(), 26, bs=4, drop_last=False, tensors=False)
    yield 'items ITRA-c',    partial(train, ITRA(warmup=0.), 26, bs=4, drop_last=False, tensors=False)
    yield 'own Phantom k=3', partial(train, PhantomEmbedding(3), 26, bs=4, drop_last=False, k=3)
    for name,make in PAIRED.items(): yield f'odd {name}', partial(train, make(), 27, bs=4, drop_last=False)

def broadcast(self, t, rank):
    "fastai's own needs a GPU"
    t = LongTensor(t)
    torch.distributed.broadcast(t, rank)
    return t.tolist()

def run(checks, out):
    "Each check's result, or its error, to a file in `out`; where one rank failed both start over with a new process group"
    store,rank = torch.distributed.FileStore(str(out/'store'), num_distrib()),rank_distrib()
    groups = itertools.count()
    start = lambda: torch.distributed.init_process_group('gloo', store=torch.distributed.PrefixStore(str(next(groups)), store), rank=rank, world_size=num_distrib(), timeout=TIMEOUT)
    start()
    for name,f in checks:
        try: res = f()
        except Exception: res = dict(error=traceback.format_exc())
        torch.save(res, out/f'{name}.{rank}')
        if failed := 'error' in res: stop()
        store.set(f'{name}.{rank}', 'failed' if failed else 'done')
        if any(store.get(f'{name}.{r}') == b'failed' for r in range(num_distrib())):
            if not failed: stop()
            start()
    stop()

def stop():
    torch.distributed.destroy_process_group()
    gc.collect()

if __name__ == '__main__':
    torch.set_num_threads(1)
    DistributedDL._broadcast = broadcast
    run(checks(), Path(sys.argv[1]))
