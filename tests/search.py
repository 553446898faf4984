"""A random search over configurations: callbacks, arguments, places, networks, batch sizes, labels, dtypes, losses, loaders; two steps each.

`python tests/search.py --n 10000 --seed 0` tries cases 0 to 9,999 of seed 0, `--only 17` shows one of them, `--smaller 17` makes it as simple as its
fault allows, `--record FILE` appends the counts to a file. A case depends on its seed and number alone. It is

- *trained*: two steps with finite losses, terms and parameters, and the learner is as it was;
- *refused*: the library raised an error that names what it is about, and the learner is as it was;
- *baseline*: it fails, or is not finite, without the library's callbacks as well;
- a *fault*: anything else."""
import argparse, concurrent.futures, contextlib, dis, io, json, signal, time, traceback, warnings
from common import *
from fastai.callback.all import *
from fastai.callback.data import WeightedDL,PartialDL
from fastai.tabular.all import TabularModel,TabularPandas,Categorify,FillMissing,Normalize
from torch.utils.checkpoint import checkpoint
import fastai, latentreg_fastai
from latentreg_fastai.bench.run import Autocast

H,TOKENS,CPU,PACKAGE = 6,20,torch.device('cpu'),str(Path(latentreg_fastai.__file__).parent)
DTYPES = dict(float32=torch.float32, float64=torch.float64, default64=torch.float64, bfloat16=torch.bfloat16, float16=torch.float16, autocast=torch.float32)

# Networks

class Fn(nn.Module):
    "A network whose forward pass is a function of itself and its inputs"
    def __init__(self, f, **layers):
        super().__init__()
        self.f = f
        for k,m in layers.items(): setattr(self, k, m)
    def forward(self, *args, **kwargs): return self.f(self, *args, **kwargs)

Output = collections.namedtuple('Output', 'pred state')
seq = nn.Sequential
def lin(i, o=H, act=None): return seq(nn.Linear(i, o), act or nn.ReLU())
def plus(*ls): return Fn(lambda s,x: x + s.f2(x), f2=seq(*ls))
def conv(i, o, act=None, stride=2): return seq(nn.Conv2d(i, o, 3, stride, 1), act or nn.ReLU())
def frozen(m): return m.requires_grad_(False)
def through(f, body, head, **more): return Fn(lambda s,*x: s.head(f(s.body, *x)), body=body, head=head, **more)

HEADS = {'linear':  lambda i,o: nn.Linear(i, o),
         'norm':    lambda i,o: seq(nn.BatchNorm1d(i), nn.Dropout(.5), nn.Linear(i, o)),
         'layer':   lambda i,o: seq(nn.LayerNorm(i), nn.Linear(i, o)),
         'dropout': lambda i,o: seq(nn.Dropout(.25), nn.Linear(i, o)),
         'deep':    lambda i,o: seq(nn.Linear(i, H), nn.ReLU(inplace=True), nn.Linear(H, o)),
         'fastai':  lambda i,o: seq(*LinBnDrop(i, H, p=.25, act=nn.ReLU(inplace=True)), *LinBnDrop(H, o, p=.5)),
         'conv':    lambda i,o: seq(nn.Unflatten(1, (i,1)), nn.Conv1d(i, o, 1), nn.Flatten())}
NORM_HEADS = 'norm','fastai'                              # need two rows
EMB = lambda: nn.Embedding(TOKENS, H)
enc = lambda: nn.TransformerEncoderLayer(H, 2, 8, dropout=0., batch_first=True)

# name: kind of input, a network of the width of its inputs and a head (a function of the width of what it gets)
NETS = {
    'mlp':         ('vector', lambda i,head: seq(lin(i), lin(H), head(H))),
    'in place':    ('vector', lambda i,head: seq(nn.Linear(i, H), nn.ReLU(inplace=True), nn.Linear(H, H), nn.ReLU(inplace=True), head(H))),
    'one layer':   ('vector', lambda i,head: seq(head(i))),
    'narrow':      ('vector', lambda i,head: seq(lin(i, 1, nn.Tanh()), head(1))),
    'wide':        ('vector', lambda i,head: seq(lin(i, 40), head(40))),
    'residual':    ('vector', lambda i,head: seq(lin(i), plus(lin(H), nn.Linear(H, H)), plus(lin(H)), head(H))),
    'branches':    ('vector', lambda i,head: Fn(lambda s,x: s.head(torch.cat([s.a(x), s.b(x)], 1)), a=lin(i, 3), b=lin(i, 4), head=head(7))),
    'shared act':  ('vector', lambda i,head: Fn(lambda s,x: s.head(s.act(s.l2(s.act(s.l1(x))))), act=nn.ReLU(), l1=nn.Linear(i, H), l2=nn.Linear(H, H), head=head(H))),
    'tied':        ('vector', lambda i,head: Fn(lambda s,x: s.head(s.l(s.l(s.stem(x)))), stem=lin(i), l=lin(H, H, nn.Tanh()), head=head(H))),
    'head first':  ('vector', lambda i,head: Fn(lambda s,x: s.head(s.body(x)), head=head(H), body=seq(lin(i), lin(H)))),
    'spare':       ('vector', lambda i,head: through(lambda f,x: f(x), lin(i), head(H), spare=nn.Linear(H, H))),
    'keyword':     ('vector', lambda i,head: Fn(lambda s,x: s.head(input=s.body(input=x).relu()), body=nn.Linear(i, H), head=head(H))),
    'dict layer':  ('vector', lambda i,head: through(lambda f,x: f(x)['z'], Fn(lambda s,x: dict(skip=x, z=s.l(x)), l=lin(i)), head(H))),
    'tuple layer': ('vector', lambda i,head: through(lambda f,x: f(x)[1], Fn(lambda s,x: (x, s.l(x)), l=lin(i)), head(H))),
    'functional':  ('vector', lambda i,head: through(lambda f,x: F.relu(f(x)), nn.Linear(i, H), head(H))),
    'frozen':      ('vector', lambda i,head: seq(frozen(lin(i)), frozen(lin(H)), head(H))),
    'checkpoint':  ('vector', lambda i,head: through(lambda f,x: checkpoint(f, x, use_reentrant=False), lin(i), head(H))),
    'reentrant':   ('vector', lambda i,head: Fn(lambda s,x: s.head(checkpoint(s.body, s.stem(x), use_reentrant=True)), stem=lin(i), body=lin(H), head=head(H))),
    'attention':   ('vector', lambda i,head: Fn(lambda s,x: s.head(s.att(*[s.up(x[...,None])]*3)[0].mean(1)), up=nn.Linear(1, H), att=nn.MultiheadAttention(H, 2, batch_first=True), head=head(H))),
    'norm':        ('vector', lambda i,head: seq(nn.Linear(i, H), nn.BatchNorm1d(H), nn.ReLU(), head(H))),
    'auxiliary':   ('vector', lambda i,head: Fn(lambda s,x: (s.head(z := s.body(x)), s.aux(z)) if s.training else s.head(s.body(x)), body=lin(i), head=head(H), aux=nn.Linear(H, 2))),
    'cnn':         ('image',  lambda i,head: seq(nn.Conv2d(i, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), conv(4, H), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(H))),
    'flat cnn':    ('image',  lambda i,head: seq(conv(i, 4), conv(4, 4), nn.Flatten(), head(16))),
    'resnet':      ('image',  lambda i,head: seq(ConvLayer(i, 4, stride=2), ResBlock(1, 4, 4), ResBlock(1, 4, H, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(H))),
    'conv head':   ('image',  lambda i,head: seq(conv(i, H), nn.AdaptiveAvgPool2d(1), nn.Conv2d(H, head.o, 1), nn.Flatten())),
    'fastai head': ('image',  lambda i,head: seq(conv(i, 4), create_head(4, head.o, lin_ftrs=[H]))),
    'conv1d':      ('series', lambda i,head: seq(nn.Conv1d(i, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, H, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), head(H))),
    'gru':         ('series', lambda i,head: through(lambda f,x: f(x.transpose(1, 2))[0][:,-1], nn.GRU(i, H, batch_first=True), head(H))),
    'lstm':        ('series', lambda i,head: through(lambda f,x: f(x.transpose(1, 2))[1][0][-1], nn.LSTM(i, H, batch_first=True), head(H))),
    'bag':         ('tokens', lambda i,head: through(lambda f,x: f(x).mean(1), EMB(), head(H))),
    'token gru':   ('tokens', lambda i,head: Fn(lambda s,x: s.head(s.rnn(s.emb(x))[0][:,-1]), emb=EMB(), rnn=nn.GRU(H, H, batch_first=True), head=head(H))),
    'transformer': ('tokens', lambda i,head: Fn(lambda s,x: s.head(s.enc(s.emb(x)).mean(1)), emb=EMB(), enc=seq(enc(), enc()), head=head(H))),
    'two inputs':  ('two',    lambda i,head: Fn(lambda s,a,b: s.head(torch.cat([s.a(a), s.b(b)], 1)), a=lin(i), b=seq(conv(1, 2), nn.Flatten(), nn.Linear(32, 4)), head=head(H+4))),
    'dict input':  ('dict',   lambda i,head: Fn(lambda s,d: s.head(s.body(torch.cat([d['a'],d['b']], 1))), body=lin(2*i), head=head(H))),
    'tuple input': ('tuple',  lambda i,head: Fn(lambda s,d: s.head(s.body(torch.cat(list(d), 1))), body=lin(2*i), head=head(H))),
    'tabular':     ('table',  lambda i,head: TabularModel([(4,2),(4,2)], 2, head.o, [H])),
    'categories':  ('table',  lambda i,head: TabularModel([(4,2),(4,2)], 0, head.o, [H])),
    'numbers':     ('table',  lambda i,head: TabularModel([], 2, head.o, [H])),
    'fcn':         ('mask',   lambda i,head: seq(conv(i, 4, stride=1), nn.Conv2d(4, head.o, 1))),
    'unet':        ('mask',   lambda i,head: Fn(lambda s,x: s.out(torch.cat([z := s.top(x), F.interpolate(s.down(z), scale_factor=2)], 1)), top=conv(i, 3, stride=1), down=conv(3, 4), out=nn.Conv2d(7, head.o, 1))),
}
NORM_NETS = 'norm','fastai head','tabular','categories','numbers'
HEADLESS  = 'conv head','fastai head','tabular','categories','numbers','fcn','unet'
HALF_NETS = 'mlp','in place','wide','residual','head first','norm','flat cnn'

# Inputs

def scaled(s): return lambda x: x*s
def outlier(x):
    x[0] = 1e6
    return x
def one_nan(x):
    x[0] = float('nan')
    return x
FEATURES = {'plain': lambda x: x, 'nan': one_nan, 'equal rows': lambda x: x[:1].expand_as(x).clone(), 'twins': lambda x: x[torch.arange(len(x))//2], 'zero': torch.zeros_like,
            'mostly equal': lambda x: torch.cat([x[:1], x[1:2].expand_as(x)])[:len(x)] if len(x) > 1 else x, 'constant': torch.ones_like, 'outlier': outlier,
            **{f'{s:.0e}': scaled(s) for s in (1e-20,1e-10,1e-6,1e-3,1e3,1e6,1e10,1e20)}}

def inputs(case, n):
    kind,i,look = NETS[case['net']][0],case['width'],FEATURES[case['features']]
    num,ints = lambda *s: look(torch.randn(n, *s)).to(DTYPES[case['dtype']]),lambda k,*s: torch.randint(0, k, (n,*s))
    return {'vector': lambda: (num(i),), 'image': lambda: (num(i, 8, 8),), 'series': lambda: (num(i, 5),), 'tokens': lambda: (ints(TOKENS, 4),), 'mask': lambda: (num(i, 8, 8),),
            'two': lambda: (num(i), num(1, 8, 8)), 'dict': lambda: (dict(a=num(i), b=num(i)),), 'tuple': lambda: ((num(i), num(i)),),
            'table': lambda: (ints(3, 0 if case['net'] == 'numbers' else 2), num(0 if case['net'] == 'categories' else 2))}[kind]()

# Targets and losses: of each kind of target the width of the output, the targets themselves, and the losses there are

PATTERNS = {'all': lambda n,k: torch.arange(n)%k, 'one class': lambda n,k: torch.full((n,), k-1), 'few classes': lambda n,k: torch.arange(n)%max(1, k-2), 'distinct': lambda n,k: torch.arange(n)%k,
            'lonely': lambda n,k: torch.tensor([1] + [0]*(n-1))[:n], 'random': lambda n,k: torch.randint(0, k, (n,)), 'ignored': lambda n,k: torch.where(torch.arange(n) == 1, -100, torch.arange(n)%k)}

class UserLoss(nn.Module):
    "A loss of a user's own with a `reduction`"
    def __init__(self, reduction='mean'): super().__init__(); self.reduction = reduction
    def forward(self, pred, y):
        l = -F.log_softmax(pred, 1).gather(1, y[:,None].clamp_min(0))[:,0]*(y >= 0)
        return l if self.reduction == 'none' else getattr(l, self.reduction)()

def class_weights(k, dt): return torch.linspace(.1, 2, k, dtype=dt)
OF_CLASSES = {
    'CrossEntropyLossFlat':           lambda k,dt: CrossEntropyLossFlat(),
    'CrossEntropyLossFlat weight':    lambda k,dt: CrossEntropyLossFlat(weight=class_weights(k, torch.float32)),   # fastai's are float32
    'CrossEntropyLossFlat ignore':    lambda k,dt: CrossEntropyLossFlat(ignore_index=0),
    'CrossEntropyLossFlat smoothing': lambda k,dt: CrossEntropyLossFlat(label_smoothing=.1),
    'CrossEntropyLossFlat sum':       lambda k,dt: CrossEntropyLossFlat(reduction='sum'),
    'LabelSmoothingCrossEntropyFlat': lambda k,dt: LabelSmoothingCrossEntropyFlat(),
    'FocalLossFlat':                  lambda k,dt: FocalLossFlat(),
    'CrossEntropyLoss':               lambda k,dt: nn.CrossEntropyLoss(),
    'CrossEntropyLoss weight':        lambda k,dt: nn.CrossEntropyLoss(weight=class_weights(k, dt)),
    'CrossEntropyLoss sum':           lambda k,dt: nn.CrossEntropyLoss(reduction='sum'),
    'UserLoss':                       lambda k,dt: UserLoss(),
    'F.cross_entropy':                lambda k,dt: F.cross_entropy,
    'partial':                        lambda k,dt: partial(F.cross_entropy, label_smoothing=.1),
    'lambda':                         lambda k,dt: lambda p,y: F.cross_entropy(p, y.view(-1).long())}
FLAT = [l for l in OF_CLASSES if 'Flat' in l]
OF_SHARES = {'CrossEntropyLoss': lambda k,dt: nn.CrossEntropyLoss(), 'CrossEntropyLoss weight': lambda k,dt: nn.CrossEntropyLoss(weight=class_weights(k, dt)),
             'F.cross_entropy': lambda k,dt: F.cross_entropy, 'BCEWithLogitsLoss': lambda k,dt: nn.BCEWithLogitsLoss(), 'BCEWithLogitsLossFlat': lambda k,dt: BCEWithLogitsLossFlat(),
             'MSELossFlat': lambda k,dt: MSELossFlat(), 'L1Loss': lambda k,dt: nn.L1Loss(), 'lambda': lambda k,dt: lambda p,y: (p.sigmoid() - y).square().mean()}
OF_YES_NO = {k: OF_SHARES[k] for k in ('BCEWithLogitsLoss','BCEWithLogitsLossFlat')}
OF_NUMBERS = {'MSELoss': lambda k,dt: nn.MSELoss(), 'L1Loss': lambda k,dt: nn.L1Loss(), 'HuberLoss': lambda k,dt: nn.HuberLoss(), 'MSELossFlat': lambda k,dt: MSELossFlat(),
              'L1LossFlat': lambda k,dt: L1LossFlat(), 'F.mse_loss': lambda k,dt: F.mse_loss, 'sum': lambda k,dt: nn.MSELoss(reduction='sum')}
OF_FLAT_NUMBERS = {k: OF_NUMBERS[k] for k in ('MSELossFlat','L1LossFlat')} | {'lambda': lambda k,dt: lambda p,y: F.mse_loss(p.view(-1), y.view(-1).to(p.dtype))}
TARGETS = {
    'classes':       (None, lambda n,k,y: (y,),                          OF_CLASSES),
    'column':        (None, lambda n,k,y: (y[:,None],),                  {l: OF_CLASSES[l] for l in (*FLAT,'lambda')}),
    'one-hot':       (None, lambda n,k,y: (F.one_hot(y, k).float(),),    OF_SHARES),
    'soft':          (None, lambda n,k,y: (torch.rand(n, k).softmax(1),),OF_SHARES),
    'multi-label':   (None, lambda n,k,y: ((torch.rand(n, k) < .4).float(),), OF_YES_NO),
    'multi-label int': (None, lambda n,k,y: ((torch.rand(n, k) < .4).long(),), {'BCEWithLogitsLossFlat': OF_SHARES['BCEWithLogitsLossFlat']}),
    'float classes': (None, lambda n,k,y: (y.float(),),                  {'lambda': OF_CLASSES['lambda']}),
    'yes or no':     (1,    lambda n,k,y: (y%2,),                        {'BCEWithLogitsLossFlat': OF_SHARES['BCEWithLogitsLossFlat']}),
    'yes or no float': (1,  lambda n,k,y: ((y%2)[:,None].float(),),      OF_YES_NO),
    'number':        (1,    lambda n,k,y: (torch.randn(n),),             OF_FLAT_NUMBERS),
    'number column': (1,    lambda n,k,y: (torch.randn(n, 1),),          OF_NUMBERS),
    'vector':        (3,    lambda n,k,y: (torch.randn(n, 3),),          OF_NUMBERS),
    'count':         (1,    lambda n,k,y: (y*3,),                        OF_FLAT_NUMBERS),
    'flat':          (1,    lambda n,k,y: (torch.randn(n),),             OF_NUMBERS),   # of a model that gives (N,)
    'class and number': (None, lambda n,k,y: (y, torch.randn(n)),        {'lambda': lambda k,dt: lambda p,y,t: F.cross_entropy(p, y) + (p[:,0] - t).square().mean()}),
    'none':          (2,    lambda n,k,y: (),                            {'lambda': lambda k,dt: lambda p: p.sum()}),
    'mask':          (None, lambda n,k,y: (torch.randint(0, k, (n,8,8)),), {'CrossEntropyLossFlat': lambda k,dt: CrossEntropyLossFlat(axis=1), 'CrossEntropyLoss': OF_CLASSES['CrossEntropyLoss']}),
    'mask ignored':  (None, lambda n,k,y: (torch.randint(0, k, (n,8,8)).index_fill_(1, torch.tensor([0,3]), -100),), {'CrossEntropyLossFlat': lambda k,dt: CrossEntropyLossFlat(axis=1), 'CrossEntropyLoss': OF_CLASSES['CrossEntropyLoss']}),
}
ONE_CLASS = 'classes','column','class and number'         # of integers, one a sample

# Loaders

class Ragged(ItemTransform):
    "Every other batch is shorter by one place"
    def __init__(self): self.odd = False
    def encodes(self, b):
        self.odd = not self.odd
        return (b[0][...,:-1],*b[1:]) if self.odd else b

def as_items(xs, ys): return [(*[map_tensors(lambda t: t[i], x) for x in xs], *[y[i] for y in ys]) for i in range(len(tensors_in(xs)[0]))]

class Rows(list):
    "A list of items that tells its vocabulary, or the number of its classes alone"
    def __init__(self, case, b, k):
        super().__init__(as_items(*b))
        if case['vocab'] == 'c': self.c = np.int64(k)
        elif case['vocab']: self.vocab,self.c = list(range(k)),k

def tensor_loaders(case, train, valid, k):
    (xs,ys),vocab = train,list(range(k)) if case['vocab'] else None
    items = [TensorItems(*x, *y, vocab=vocab, n_inp=len(xs), split_idx=j) for j,(x,y) in enumerate((train,valid))]
    kw = dict(after_batch=Ragged()) if case['ragged'] else {}
    return TensorDL(items[0], bs=case['bs'], shuffle=True, drop_last=case['drop_last'], **kw), TensorDL(items[1], bs=case['bs'])

def item_loaders(case, train, valid, k, cls=TfmdDL, **kwargs):
    kw = dict(num_workers=0, bs=case['bs'])
    return cls(Rows(case, train, k), shuffle=True, drop_last=case['drop_last'], **kw, **kwargs), TfmdDL(Rows(case, valid, k), **kw)

def weighted(case, train, valid, k): # a fifth of the samples are never drawn
    n = len(tensors_in(train[0])[0])
    return item_loaders(case, train, valid, k, cls=WeightedDL, wgts=[float(j%5 != 1) for j in range(n)])

def torch_loaders(case, train, valid, k):
    return tuple(torch.utils.data.DataLoader(Rows(case, b, k), batch_size=case['bs'], shuffle=not j, drop_last=case['drop_last'] and not j) for j,b in enumerate((train,valid)))

def block_loaders(case, train, valid, k):
    n,(xs,ys) = len(train[0][0]),map(list, zip(*[(as_items(x, ()),y[0].tolist()) for x,y in (train,valid)]))
    block = {'classes': CategoryBlock(vocab=list(range(k)), sort=False), 'number': RegressionBlock(), 'vector': RegressionBlock(n_out=3),
             'multi-label': MultiCategoryBlock(encoded=True, vocab=list(map(str, range(k))))}[case['target']]
    items = [(x[0],y) for b in zip(xs, ys) for x,y in zip(*b)]
    db = DataBlock((TransformBlock,block), getters=[ItemGetter(0),ItemGetter(1)], splitter=IndexSplitter(list(range(n, len(items)))))
    return tuple(db.dataloaders(items, bs=case['bs'], num_workers=0, device=CPU, drop_last=case['drop_last']).loaders)

def pandas_loaders(case, train, valid, k):
    cats,nums = (torch.cat([b[0][j] for b in (train,valid)]) for j in (0,1))
    y = torch.cat([b[1][0] for b in (train,valid)])
    df = pd.DataFrame({**{f'c{j}': cats[:,j].numpy() for j in range(cats.shape[1])}, **{f'n{j}': nums[:,j].float().numpy() for j in range(nums.shape[1])}, 'y': y.numpy()})
    n,m = len(train[1][0]),len(df)
    names = lambda a: [c for c in df if c[0] == a]
    to = TabularPandas(df, [Categorify], cat_names=names('c'), cont_names=names('n'), y_names='y', y_block=CategoryBlock(vocab=list(range(k)), sort=False) if case['target'] == 'classes' else RegressionBlock(),
                       splits=(list(range(n)),list(range(n, m))), reduce_memory=False)
    return tuple(to.dataloaders(bs=case['bs'], num_workers=0, device=CPU, drop_last=case['drop_last']).loaders)

LOADERS = {'tensor': tensor_loaders, 'items': item_loaders, 'weighted': weighted, 'partial': partial(item_loaders, cls=PartialDL, partial_n=10**6), 'torch': torch_loaders,
           'block': block_loaders, 'pandas': pandas_loaders,
           'clusters': lambda *a: (MicroClusterDL((b := tensor_loaders(*a))[0], 2),b[1])}

# What is drawn. Values that JSON does not have are {what: its argument}, see `MAKE`

class OwnPenalty(LatentCallback):
    def penalty(self, z, *yb): return z.float().square().mean()
class OwnMixing(MixingCallback):
    def before_batch(self):
        if self.begin_mixing(): self.learn.xb = (self.mix(self.xb[0]), *self.xb[1:])

NUMBERS = {'cosine': lambda: SchedCos(1., 0.), 'half': lambda: lambda pct: float(pct > .4)}
FUNCTIONS = {**NUMBERS, 'last child': lambda: lambda m: list(m.children())[-1], 'nothing': lambda: lambda m: None, 'median': lambda: median_bandwidth, 'amax': lambda: lambda z: z.amax(1),
             'same': lambda: lambda z: z, 'target': lambda: lambda learn: learn.yb[0]}

def place(what, model):
    "A place of `model`, which of them by a number"
    kind,_,v = what.partition(' ')
    names = [n for n,_ in model.named_modules() if n] or ['nothing']
    name = lambda: names[int(v)%len(names)]
    return {'name': name, 'input': lambda: f'{name()}:input', 'module': lambda: dict(model.named_modules())[name()], 'type': lambda: type(dict(model.named_modules())[name()]),
            'index': lambda: int(v), 'glob': lambda: v, 'wrong': lambda: v, 'other': lambda: nn.Linear(2, 2)}[kind]()

def unlabeled_loader(what, case):
    kind,wrong = what.split()[0],what.split()[1:]
    n = case['bs'] + 1
    xs = inputs(dict(case, width=case['width'] + ('width' in wrong)), n)
    if 'dtype' in wrong: xs = map_tensors(lambda t: t.long() if t.is_floating_point() else t.float(), xs)
    ys = () if 'bare' in wrong else (torch.zeros(n, dtype=torch.long),)
    items = as_items(xs, ys) if ys or len(xs) > 1 else [b[0] for b in as_items(xs, ys)]
    if kind == 'torch': return torch.utils.data.DataLoader(items, batch_size=case['bs'], shuffle=True)
    if kind == 'empty': return TfmdDL(items, bs=10**3, drop_last=True, num_workers=0)
    return {'items': lambda: TfmdDL(items, bs=case['bs'], shuffle=True, num_workers=0), 'list': lambda: [], 'dls': lambda: DataLoaders(TfmdDL(items, num_workers=0)), 'None': lambda: None}[kind]()

class VAEOf(nn.Module):
    "An untrained autoencoder of samples of this shape"
    def __init__(self, *shape): super().__init__(); self.shape = shape; self.enc,self.dec = nn.Linear(math.prod(shape), 3),nn.Linear(3, math.prod(shape))
    def encode(self, x): return self.enc(x.flatten(1))
    def decode(self, z): return self.dec(z).view(-1, *self.shape)
def vae(what, case):
    "An autoencoder of the case's own inputs, or not"
    own = (4,) if case['gan'] else tensors_in(inputs(case, 1))[0].shape[1:]
    return {'own': lambda: VAEOf(*own), 'linear': lambda: nn.Linear(2, 2), 'other': lambda: VAEOf(case['width']+1, 8, 8)}[what]()

MAKE = {'float': lambda v,case,model: float(v), 'np': lambda v,case,model: getattr(np, v[0])(v[1]), 'tensor': lambda v,case,model: torch.tensor(v), 'f': lambda v,case,model: FUNCTIONS[v](), 'place': lambda v,case,model: place(v, model),
        'unlabeled': lambda v,case,model: unlabeled_loader(v, case), 'vae': lambda v,case,model: vae(v, case),
        'array': lambda v,case,model: np.array(v)}
def made(v, case, model):
    if isinstance(v, list): return [made(o, case, model) for o in v]
    if not isinstance(v, dict): return v
    (what,arg), = v.items()
    return MAKE[what](arg, case, model)

NAN,INF = {'float': 'nan'},{'float': 'inf'}
np32,i64 = lambda v: {'np': ['float32',v]},lambda v: {'np': ['int64',v]}
def where(r, none=.3):
    n = r.randrange(40)
    kind = r.choices([None,'name','input','module','type','index','glob','wrong','f'], [none,.25,.12,.08,.06,.08,.04,.04,.03])[0]
    if kind is None: return None
    if kind == 'f': return {'f': r.choice(['last child','last child','nothing'])}
    v = {'index': r.choice([0,1,-1,-2,9]), 'glob': r.choice(['*','*.0','[0-9]','body*']), 'wrong': r.choice(['nope','0:output','','0.0.0.0:input'])}.get(kind, n)
    return {'place': f'{kind} {v}'}
def layers(r):
    return r.choice([lambda: None, lambda: 'all', lambda: [], lambda: where(r, 0), lambda: where(r, 0), lambda: [where(r, 0), where(r, 0)]])()

# argument: what is good, and what is at the border or beyond it; functions draw it
BOOL,RARE = ([True,False],[]),([False,False,False,False,True],[])
WEIGHT = [1.,.1,5.,0,0.,np32(.5),{'f': 'cosine'},{'f': 'half'},2],[-1.,'x',INF,NAN,None,True,{'tensor': .5}]
ALPHA  = [.1,1.,2,np32(.5),i64(1)],[0,-1.,'x',NAN,None,True]
WHERE,LAYERS = ([where],[]),([layers],[])
CLASSES_ARG = [None,lambda r: 'K',lambda r: 'K+2',lambda r: 'np K'],[0,1,2,True,2.5,'x',-1,300]
LABELS = [None,0,{'f': 'target'}],[1,3,-1,'y',True]
ITEM_LABELS = [None,None,lambda r: 'labels'],[[0,1],'x']
CLASSWISE = dict(weight=WEIGHT, layer=WHERE, classwise=BOOL, n_classes=CLASSES_ARG, labels=LABELS)
OURS = {
    'ManifoldMixup':          (9, ManifoldMixup, dict(alpha=ALPHA, layers=LAYERS, input_mixup=BOOL, per_item=BOOL, stop_grad=RARE)),
    'VarianceRegularizer':    (6, VarianceRegularizer, CLASSWISE),
    'CovarianceRegularizer':  (6, CovarianceRegularizer, CLASSWISE),
    'ActivationL1':           (4, ActivationL1, dict(weight=WEIGHT, layer=WHERE)),
    'CenterLoss':             (6, CenterLoss, dict(weight=WEIGHT, lr=([.5,1,np32(.1)],[0,2,'x']), layer=WHERE, n_classes=CLASSES_ARG, labels=LABELS)),
    'ITRA':                   (9, ITRA, dict(CLASSWISE, source=(['dataset','split','queue'],['x']), sigma=([None,1.,np32(2.),{'f': 'median'}],[0,-1,'x']), warmup=([0.,0,.2,.5],[1.,-.1,'x']), squared=BOOL,
                                  separate=RARE, matched=RARE, queue_len=([1,4,i64(2)],[0,1.5,True]), item_labels=ITEM_LABELS)),
    'PhantomEmbedding':       (9, PhantomEmbedding, dict(k=([2,3,4,1,i64(2)],[0,-1,2.5,True,'x']), alpha=ALPHA, layer=WHERE, source=(['dataset','batch'],['x']), aggregate=(['mean',{'f': 'amax'}],['max',{'f': 'same'}]), naive=BOOL, labels=ITEM_LABELS)),
    'DisturbLabel':           (5, DisturbLabel, dict(p=([.1,.5,1,0,0.,np32(.5)],[-.1,2,'x',None,NAN]), n_classes=CLASSES_ARG)),
    'WeightL1':               (3, WeightL1, dict(weight=WEIGHT, layer=WHERE)),
    'VarMixup':               (3, VarMixup, dict(vae=([{'vae': 'own'}],[{'vae': 'linear'},{'vae': 'other'},None]), alpha=ALPHA, p=([1.,.5,0,np32(.5)],[-1,2,'x']))),
    'SemiSupervisedMixup':    (5, SemiSupervisedMixup, dict(unlabeled=([{'unlabeled': u} for u in ('items','items','torch','items bare')],[{'unlabeled': u} for u in ('empty','list','dls','None','items width','items dtype')]),
                                  alpha_labeled=ALPHA, alpha_unlabeled=ALPHA, weight=WEIGHT, rampup=([0.,.4,1],[2,-1,'x']), layers=LAYERS, input_mixup=BOOL)),
    'LatentMonitor':          (4, LatentMonitor, dict(every=([1,2,i64(2)],[0,1.5,True]), layer=WHERE, normalize=BOOL, n_classes=CLASSES_ARG)),
    'OwnPenalty':             (2, OwnPenalty, dict(weight=WEIGHT, layer=WHERE)),
    'OwnMixing':              (1, OwnMixing, {}),
    'GANMixup':               (.3, GANMixup, dict(alpha=([.5,1,np32(.3)],[0,2,'x']), layers=LAYERS, input_mixup=BOOL, weight=WEIGHT)),
}
NEEDED = {'VarMixup': ['vae'], 'SemiSupervisedMixup': ['unlabeled']}
THEIRS = {'MixUp': lambda bs: MixUp(), 'CutMix': lambda bs: CutMix(), 'GradientAccumulation': lambda bs: GradientAccumulation(2*bs), 'GradientAccumulation long': lambda bs: GradientAccumulation(64),
          'MixedPrecision': lambda bs: MixedPrecision(), 'skipped batch': lambda bs: Skip('before_batch', CancelBatchException, 1000), 'skipped batch, late': lambda bs: Skip('after_loss', CancelBatchException, 1000),
          'skipped backward': lambda bs: Skip('before_backward', CancelBackwardException, 1000), 'skipped step': lambda bs: Skip('before_step', CancelStepException, 1000), 'overflow': lambda bs: Overflow(),
          'GradientClip': lambda bs: GradientClip(.1), 'ReduceLROnPlateau': lambda bs: ReduceLROnPlateau(), 'EarlyStoppingCallback': lambda bs: EarlyStoppingCallback(),
          'ShortEpochCallback': lambda bs: ShortEpochCallback(.6)}

METRICS = {'ECE': ECE, 'NLL': NLL, 'Brier': Brier}

def draw_args(r, args, needed):
    res = {}
    for k,(good,edge) in args.items():
        if k not in needed and r.random() < .45: continue
        v = r.choice(edge if edge and r.random() < .015 else good)
        res[k] = v(r) if callable(v) else v
    return res

def draw_callback(r, case, first=True):
    "A callback and its arguments; most often one that goes with the data"
    of_gan,labels = case['gan'] and first,case['target'] in ONE_CLASS
    unsuited = {n for n in ('CenterLoss','PhantomEmbedding','LatentMonitor','DisturbLabel') if not labels} | ({'VarMixup'} if NETS[case['net']][0] not in ('vector','image','series') else set())
    for _ in range(3):
        name = 'GANMixup' if of_gan else r.choices(list(OURS), [w for w,*_ in OURS.values()])[0]
        if name not in unsuited: break
    args = draw_args(r, OURS[name][2], NEEDED.get(name, ()))
    if r.random() < .8:
        if 'classwise' in OURS[name][2] and not labels: args['classwise'] = False
        if 'n_classes' in OURS[name][2] and case['vocab'] is False and labels: args['n_classes'] = 'K'
        if args.get('source') in ('split','queue','batch'): args = {k: v for k,v in args.items() if k not in ('separate','matched')}
    return [name, args]

def draw(
    seed, i # The case `i` of a search depends on them alone
)->dict: # All that it is made of, which JSON can hold
    r = random.Random(f'{seed}/{i}')
    odd = lambda usual, others, p: usual if r.random() > p else r.choice(others)
    case = dict(gan=r.random() < .03, net=r.choice(list(NETS)), width=r.choice([1,2,3,4]), head=odd('linear', list(HEADS), .6), output=odd('plain', ['tuple','dict','named'], .12))
    kind = NETS[case['net']][0]
    if case['net'] in HEADLESS: case['head'] = 'linear'
    case['bs'] = r.choice([1,2,3,4,5,8])
    if case['net'] in NORM_NETS or case['head'] in NORM_HEADS: case['bs'] = max(2, case['bs'])
    low = 2 if case['bs'] > 1 and (case['net'] in NORM_NETS or case['head'] in NORM_HEADS or case['net'] in ('cnn','resnet')) else 1
    case['epochs'] = odd(1, [2], .2)
    case['rest'] = case['bs'] if case['epochs'] == 2 or r.random() < .5 else r.randint(low, case['bs'])   # rows of the second batch
    case['drop_last'] = r.random() < .3
    case['target'] = r.choice(['mask','mask ignored']) if kind == 'mask' else r.choices([t for t in TARGETS if t[:4] != 'mask'], [30,2,1.5,1.5,1,1,1.5,1.5,1,1.5,1.5,1,1.5,1,1,.3])[0]
    if kind in ('dict','tuple') and case['target'] == 'class and number': case['target'] = 'classes'   # `n_inp` is not known
    if case['net'] == 'auxiliary': case.update(output='plain', target='number' if case['target'] == 'flat' else case['target'])
    case['classes'] = r.choice([2,3,3,5])
    case['pattern'] = odd('all', list(PATTERNS), .5)
    if case['pattern'] == 'ignored' and (case['target'] not in ONE_CLASS or case['bs'] + case['rest'] < 4 or case['rest'] < 2): case['pattern'] = 'random'
    case['loss'] = r.choice(list(TARGETS[case['target']][2]))
    case['label dtype'] = 'int64' if case['target'] not in ONE_CLASS[:2] or case['pattern'] == 'ignored' else odd('int64', ['int32','uint8','bool','int16'], .15)
    if case['label dtype'] == 'bool': case.update(classes=2, loss='lambda')
    if case['label dtype'] != 'int64': case['loss'] = 'lambda' if case['label dtype'] == 'uint8' or case['loss'] not in FLAT else case['loss']
    if case['pattern'] == 'distinct' and case['label dtype'] != 'bool': case['classes'] = max(2, case['bs'] + case['rest'])
    if case['loss'] == 'CrossEntropyLossFlat ignore' and (case['pattern'] != 'all' or min(case['bs'], case['rest']) < 3): case['loss'] = 'CrossEntropyLossFlat'
    case['features'] = odd('plain', [*FEATURES, 'equal rows', 'mostly equal', 'twins', 'zero'], .3)
    if case['features'] in ('1e+20','1e+10') and r.random() < .5: case['features'] = '1e+06'
    case['dtype'] = odd('float32', ['float64','default64','autocast','autocast','bfloat16','float16'], .25)
    if case['dtype'] in ('bfloat16','float16') and (case['net'] not in HALF_NETS or case['features'] in ('1e+20','1e+10','1e+06','outlier') or case['head'] == 'conv'): case['dtype'] = 'autocast'
    blocks = ['block']*3 if kind in ('vector','image') and case['target'] in ('classes','number','vector','multi-label') and case['label dtype'] == 'int64' and case['pattern'] != 'ignored' else []
    pandas = ['pandas']*8 if kind == 'table' and case['target'] in ('classes','number') and case['pattern'] != 'ignored' and (case['target'] == 'number' or case['loss'] in (*FLAT,'lambda')) and case['label dtype'] == 'int64' and case['dtype'][-2:] != '64' else []
    clusters = ['clusters'] if case['target'] in ONE_CLASS[:2] else []
    many = ['weighted','partial','torch'] if case['target'] not in ('class and number','none') and kind not in ('two','table') else []
    if case['dtype'] in ('bfloat16','float16') and case['loss'] == 'CrossEntropyLossFlat weight': case['loss'] = 'CrossEntropyLossFlat'
    loaders = ['items','items',*many[2:]] if kind in ('dict','tuple') else ['tensor']*(6 if kind != 'table' else 3) + ['items']*3*bool(many) + many + blocks + pandas + clusters
    case['loader'] = r.choice(loaders)
    case['vocab'] = odd(True, [False,'c'], .2) if case['target'] in (*ONE_CLASS[:2],'float classes') else False
    case['ragged'] = (kind in ('series','tokens') or case['net'] in ('cnn','resnet','conv head')) and case['loader'] == 'tensor' and r.random() < .15
    case['fits'] = odd(1, [2], .1)
    case['optimizer'],case['fit'],case['joined'] = r.choice(['Adam','SGD']),odd('fit', ['one cycle'], .15),odd('fit', ['learner'], .25)
    mates = [t for t in THEIRS if t not in ('MixUp','CutMix') or case['loss'] in FLAT or case['target'] in ('one-hot','soft','multi-label','vector')]
    if kind not in ('image','mask') or case['target'] != 'classes' or case['loss'] not in FLAT: mates = [t for t in mates if t != 'CutMix']
    if case['dtype'] != 'float32' or case['bs'] == 1 or case['output'] != 'plain' or case['net'] == 'auxiliary' or kind in ('tokens','table','dict','tuple','two','mask'): mates = [t for t in mates if t not in ('MixUp','CutMix')]
    if case['output'] == 'named': mates = [t for t in mates if t != 'MixedPrecision']
    if case['net'] in (*NORM_NETS,'cnn','resnet') or case['head'] in NORM_HEADS: mates = [t for t in mates if t != 'overflow']   # it spoils running statistics
    if case['target'] == 'none' or kind == 'tokens' or case['net'] == 'categories': mates = ['GradientClip']
    case['metrics'] = [r.choice(list(METRICS))] if r.random() < .12 and not case['gan'] else []
    how = r.random()
    case['ours'] = [draw_callback(r, case)] + ([draw_callback(r, case, False)] if how > .75 else [])
    if case['epochs'] == 2 and 'LatentMonitor' in [n for n,_ in case['ours']] and r.random() < .8: case['epochs'] = 1
    case['theirs'] = [r.choice(mates)] if how < .25 else []
    if case['gan']: case.update(theirs=[], dtype='float32', loader='tensor', bs=max(2, case['bs']), rest=max(2, case['rest']))
    if case['dtype'] == 'autocast' and case['output'] == 'named': case['output'] = 'dict'
    if case['loader'] == 'torch' and case['dtype'] == 'autocast': case['dtype'] = 'float32'
    return case

# A case, built and tried

def of_classes(args, case, labels):
    "`args` with what depends on the data in place of its name"
    k = case['classes']
    known = {'K': k, 'K+2': k+2, 'np K': i64(k), 'labels': labels}
    return {a: known.get(v, v) if isinstance(v, str) and a in ('n_classes','labels','item_labels') else v for a,v in args.items()}

def net_of(case, out):
    make = lambda i: HEADS[case['head']](i, out)
    make.o = out
    model = NETS[case['net']][1](case['width'], make)
    if case['target'] == 'flat': model = Fn(lambda s,*x: s.model(*x).flatten(), model=model)
    wrap = {'tuple': lambda o: (o,o.detach()), 'dict': lambda o: dict(pred=o, state=o.detach()), 'named': lambda o: Output(o, o.detach())}.get(case['output'])
    if wrap: model = Fn(lambda s,*x: wrap(s.model(*x)), model=model)
    return model.to(DTYPES[case['dtype']])

def gan_of(case):
    n = case['bs'] + case['rest']
    noise,real = torch.randn(n, 4),FEATURES[case['features']](torch.randn(n, 1, 8, 8))
    dls = DataLoaders(TensorDL((noise,real), bs=case['bs'], shuffle=True), TensorDL((noise,real), bs=case['bs']), device=CPU)
    return gan_learner(dls=dls, seed=1)

def build(
    case, # As `draw` gives it
    ours=True, # With the library's callbacks, or the baseline without them?
): # The learner, and what makes the callbacks
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    if case['gan']: return gan_of(case),lambda model: [make_callback(*cb, case, model, None) for cb in case['ours']*ours]
    n = (case['bs'] if case['epochs'] == 2 else case['bs'] + case['rest'])
    if case['drop_last'] and case['epochs'] == 1: n = 2*case['bs'] + case['rest'] % case['bs']
    k,(width,make,losses) = case['classes'],TARGETS[case['target']]
    dt,sets = DTYPES[case['dtype']],[]
    for m in (n,max(2, case['bs'])):
        y = PATTERNS[case['pattern']](m, k)
        labels = y.tolist()
        if case['pattern'] != 'ignored': y = y.to(getattr(torch, case['label dtype']))
        sets.append((inputs(case, m), tuple(t.to(dt) if t.is_floating_point() and case['target'] != 'float classes' else t for t in make(m, k, y.clone()))))
        if m == n and not len(sets) > 1: train_labels = labels
    dls = DataLoaders(*LOADERS[case['loader']](case, *sets, k), device=CPU)
    out = width or k
    loss = losses[case['loss']](k, dt)
    if case['output'] != 'plain' or case['net'] == 'auxiliary': loss = partial(lambda f,p,*y: f(first(tensors_in(p)), *y), loss)
    learn = Learner(dls, net_of(case, out), loss_func=loss, opt_func={'Adam': Adam, 'SGD': SGD}[case['optimizer']], lr=1e-2)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    if case['dtype'] not in ('float32','autocast'): learn.recorder.smooth_loss = SmoothLoss()
    torch.manual_seed(2)
    return learn,lambda model: [make_callback(*cb, case, model, train_labels) for cb in case['ours']*ours]

def make_callback(name, args, case, model, labels):
    return OURS[name][1](**{k: made(v, case, model) for k,v in of_classes(args, case, labels).items()})

class SmoothLoss(AvgSmoothLoss):
    "fastai's own takes float32 alone"
    def accumulate(self, learn):
        self.count += 1
        self.val = torch.lerp(learn.loss.detach().mean().float(), self.val, self.beta)

class Watch(Callback):
    "Keeps losses and terms, and counts batches"
    order,run_valid = 1000,False
    def __init__(self): self.seen,self.batches = collections.defaultdict(list),0
    def after_loss(self):
        if len(self.learn.yb): self.seen['loss'].append(self.learn.loss.detach()); self.seen['what is differentiated'].append(self.learn.loss_grad.detach())
        self.look()
    def look(self, measured=False):
        for cb in self.learn.cbs:
            if getattr(cb, 'term', None) is not None and isinstance(cb, TermCallback) and measured == (type(cb).__name__ == '_Measure'): self.seen[cb.term_name].append(cb.term)
    def after_step(self): self.look(True)
    def after_batch(self):
        self.batches += 1
        if self.batches == 1 and any(isinstance(cb, Overflow) for cb in self.learn.cbs): self.seen.clear()   # that step did not count

class Skip(Callback):
    "Cancels something in the first batch of a fit"
    run_valid = False
    def __init__(self, event, exc, order): self.order,self.exc = order,exc; object.__setattr__(self, event, self.skip)
    def before_fit(self): self.done = False
    def skip(self):
        if not self.done: self.done = True; raise self.exc

class Overflow(Callback):
    "The first batch of a fit is infinite, and its step is skipped, as a scaler of gradients does it"
    order,run_valid = -8,False
    def before_batch(self):
        if self.learn.train_iter == 0: self.learn.xb = map_tensors(lambda t: t*math.inf if t.is_floating_point() else t, self.learn.xb)
    def before_step(self):
        if self.learn.train_iter == 0: raise CancelStepException

PATIENCE = 30
class TooLong(BaseException): pass
@contextmanager
def at_most(seconds):
    "Raises where it takes longer; a case is some milliseconds"
    def stop(*_): raise TooLong
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally: signal.setitimer(signal.ITIMER_REAL, 0); signal.signal(signal.SIGALRM, before)

def no_autocast():
    "An error inside a step leaves fastai's autocast on"
    for device in ('cpu','cuda'): torch.set_autocast_enabled(device, False)
    for _ in range(torch.autocast_increment_nesting()): torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()

def left_behind(learn, was, mates):
    "What is not as it was before the fit"
    now = state_of(learn)
    if any(isinstance(cb, MixHandler) for cb in mates): now['loss'] = was['loss']   # fastai's own leaves it after an error
    if hasattr(learn, 'gan_trainer'): now['trained'] = was['trained']               # and a GAN freezes its networks in turn
    return [k for k in was if not (now[k] is was[k] if k in ('model','loader','loss') else now[k] == was[k])]

def state_of(learn):
    return dict(callbacks=[id(cb) for cb in learn.cbs], model=learn.model, loader=learn.dls.train, loss=learn.loss_func, hooks=hooks(learn.model),
                trained=[p.requires_grad for p in learn.model.parameters()])

def run(case, ours=True):
    "One fit: what came of it, what it raised, and what was not finite"
    torch.set_default_dtype(torch.float64 if case['dtype'] == 'default64' else torch.float32)
    try: return _run(case, ours)
    finally: torch.set_default_dtype(torch.float32)

class Unbuilt(Exception): pass

def _run(case, ours):
    try: learn,make = build(case, ours)
    except Exception as e: raise Unbuilt(of_error(e)) from e
    was,watch,error,stage,mates,cbs = state_of(learn),Watch(),None,'made',[],[]
    with warnings.catch_warnings(record=True) as notes, contextlib.redirect_stdout(io.StringIO()), at_most(PATIENCE):
        warnings.simplefilter('always')
        if ours: learn.metrics = [METRICS[m]() for m in case['metrics']]
        try:
            cbs = make(learn.model)
            torch.manual_seed(2)                           # an autoencoder among them may have drawn
            stage,mates = 'joined',[THEIRS[t](case['bs']) for t in case['theirs']] + [Autocast('bf16')]*(case['dtype'] == 'autocast')
            if case['joined'] == 'learner': learn.add_cbs(cbs)
            stage,fit = 'fit',learn.fit if case['fit'] == 'fit' else learn.fit_one_cycle
            for _ in range(case['fits']): fit(case['epochs'], 1e-2, cbs=[*([] if case['joined'] == 'learner' else cbs), *mates, watch])
        except (Exception,TooLong) as e: error = e
        finally: no_autocast()
    if case['joined'] == 'learner': learn.remove_cbs([cb for cb in learn.cbs if any(cb is c for c in cbs)])
    bad = [k for k,v in watch.seen.items() if not all(t.isfinite().all() for t in v)]
    if not all(p.isfinite().all() for p in learn.model.parameters()): bad.append('parameters')
    return SimpleNamespace(error=error, stage=stage, bad=bad, left=left_behind(learn, was, mates), notes=notes, batches=watch.batches, model=learn.model, terms=dict(watch.seen))

def frames(e): return [f for f,_ in traceback.walk_tb(e.__traceback__)]
def is_ours(frame): return frame.f_code.co_filename.startswith(PACKAGE)

def raised_here(e):
    "Was `e` raised by a `raise` of the library?"
    tb = e.__traceback__
    while tb.tb_next: tb = tb.tb_next
    code = tb.tb_frame.f_code
    op = dis.opname[code.co_code[tb.tb_lasti]]
    return is_ours(tb.tb_frame) and op in ('RAISE_VARARGS','RERAISE')

NAMES = {n for n,o in vars(latentreg_fastai.all).items() if getattr(o, '__module__', '').startswith('latentreg_fastai')}
def own_words(e): return re.sub(r"Exception occured in `\w+` when calling event `\w+`:\s*", '', str(e))   # without fastai's
def names_something(e): return any(n in own_words(e) for n in NAMES | {cls.__name__ for _,cls,_ in OURS.values()})

def plain_text(msg):
    "A message without what differs between cases"
    msg = re.sub(r'(lies below|more before it, at) [^\s,]+', r'\1 …', str(msg))
    msg = re.sub(r'(layers?)=.*?: ', r'\1=…: ', re.sub(r'(the layers are|did you mean|; give|: choose) .*', r'\1 …', own_words(msg), flags=re.S), count=1)
    return re.sub(r"\d[\d.e+-]*", '#', re.sub(r"'[^']*'", "'…'", re.sub(r'0x\w+', '', msg))).strip().split('\n')[0][:110]

def of_error(e):
    "Where an error comes from: its type, the last function of the library on the way, and the function that failed"
    fs,cut = frames(e),len(PACKAGE) + 1
    mine = [f for f in fs if is_ours(f)]
    who = next((type(f.f_locals['self']).__name__ for f in reversed(mine) if isinstance(f.f_locals.get('self'), (Callback,Metric))), '')
    name = lambda f: getattr(f.f_code, 'co_qualname', f.f_code.co_name)         # Python 3.10 has the second only
    at = f'{mine[-1].f_code.co_filename[cut:]}:{name(mine[-1])}' if mine else 'outside the library'
    return f'{type(e).__name__} {who} at {at} in {name(fs[-1])}: {plain_text(e)}'

def is_off(name, args):
    "Do these arguments say that the callback does nothing to training?"
    zero = lambda k: k in args and not isinstance(args[k], (bool,dict,str)) and args[k] == 0
    return {'PhantomEmbedding': args.get('k') == 1, 'DisturbLabel': zero('p'), 'VarMixup': zero('p'), 'LatentMonitor': True}.get(name, name not in ('ManifoldMixup','SemiSupervisedMixup','OwnMixing') and zero('weight'))

def outcome(case):
    "`(class, key, notes)` of a case: the key tells refusals and faults of one kind apart"
    res = run(case)
    names,notes = ' + '.join(sorted({n for n,_ in case['ours']})),sorted({plain_text(w.message) for w in res.notes if is_note(w)})
    if isinstance(res.error, TooLong): return 'fault','takes too long: '+names,notes
    if res.left: return 'fault',f"leaves {', '.join(res.left)}: {of_error(res.error) if res.error else names}",notes
    if res.error is None:
        bad = [k for k in res.bad if not k.startswith('pair_distance')]   # NaN where two batches share no class, as it says
        if not bad and case['target'] != 'none' and not case['gan'] and res.batches != 2*case['fits'] and not {'ShortEpochCallback','EarlyStoppingCallback'} & {*case['theirs']}: return 'fault',f'{res.batches} batches: {names}',notes
        if not bad and explodes(case, res): return 'fault',f'parameters beyond {BEYOND:.0e}: {names}',notes
        if case['features'] == 'nan': return ('fault',f'NaN features give a finite term: {names}',notes) if hides_nan(case, res) else ('baseline','not finite',notes)
        if not bad and all(is_off(*cb) for cb in case['ours']): return off_is_off(case, res, names, notes)
        if not bad: return 'trained','',notes
    elif raised_here(res.error):
        return ('refused',f'{type(res.error).__name__}: {plain_text(res.error)}',notes) if names_something(res.error) else ('fault','names nothing: '+of_error(res.error),notes)
    base = run(case, ours=False)
    if base.error is not None: return 'baseline',of_error(base.error),notes
    if 'loss' in base.bad or 'parameters' in base.bad: return 'baseline','not finite',notes
    if res.error is None and largest(base.model) > BRINK: return 'baseline',f'parameters beyond {BRINK:.0e}, all but infinite',notes
    if res.error is not None: return 'fault',of_error(res.error),notes
    return 'fault',f"not finite, {' and '.join(n for n in bad if n not in ('loss','what is differentiated')) or 'loss'}: {names}",notes

BEYOND,BRINK = 1e6,1e15
def largest(model): return max(p.abs().max() for p in model.parameters() if p.numel())
def explodes(case, res):
    "Does a callback throw parameters far off, with inputs of no great size?"
    small = case['features'] not in ('outlier','1e+03','1e+06','1e+10','1e+20') and 'sum' not in case['loss']
    if case['features'] in ('zero','constant','equal rows') and (case['net'] in NORM_NETS or case['head'] in NORM_HEADS): return False   # BatchNorm makes distances of round-off
    return small and largest(res.model) > BEYOND

def hides_nan(case, res):
    "Is a penalty of features finite in all batches where one sample is NaN?"
    (name,args),*more = case['ours']
    if more or NETS[case['net']][0] != 'vector' or case['gan'] or is_off(name, args) or 'layer' in args or case['theirs']: return False
    if name not in ('VarianceRegularizer','CovarianceRegularizer','ActivationL1','CenterLoss','ITRA','PhantomEmbedding'): return False
    losses,(terms,*_) = res.terms['loss'],[ts for n,ts in res.terms.items() if n not in ('loss','what is differentiated')] or [[]]
    first_nan = next((j for j,l in enumerate(losses) if not l.isfinite()), len(losses)) - (len(losses) - len(terms))   # later ones may be those of broken weights
    return 0 <= first_nan < len(terms) and bool(terms[first_nan].isfinite())

def off_is_off(case, res, names, notes):
    base = run(case, ours=False)
    if base.error is None and all(torch.equal(*p) for p in zip(res.model.parameters(), base.model.parameters())): return 'trained','',notes
    return ('fault',f'off, and training is another: {names}',notes) if base.error is None else ('baseline',of_error(base.error),notes)

def is_note(w): return PACKAGE in str(w.filename) or names_something(w.message) or 'fastcore' in str(w.filename)

# Making a case simpler

PLAIN = dict(theirs=[], metrics=[], ragged=False, fits=1, joined='fit', fit='fit', epochs=1, drop_last=False, optimizer='SGD', dtype='float32', output='plain', head='linear', net='mlp', features='plain', loader='tensor', vocab=True,
             target='classes', loss='CrossEntropyLossFlat', pattern='all', classes=3, width=2, bs=4, rest=4)
PLAIN['label dtype'] = 'int64'

def simpler(case):
    "The case with one thing less"
    if len(case['ours']) > 1: yield from (dict(case, ours=[cb]) for cb in case['ours'])
    for j,(name,args) in enumerate(case['ours']):
        for a in args:
            if a not in NEEDED.get(name, ()): yield dict(case, ours=[cb if l != j else [name, {k: v for k,v in args.items() if k != a}] for l,cb in enumerate(case['ours'])])
    if case['target'] != 'classes': yield dict(case, target='classes', loss='CrossEntropyLossFlat')
    for k,v in PLAIN.items():
        if case[k] != v: yield dict(case, **{k: v})

def smaller(case, key):
    "The simplest case of the same fault"
    def same_fault(c):
        try: return outcome(c)[:2] == ('fault',key)
        except Unbuilt: return False
    while (found := next((c for c in simpler(case) if same_fault(c)), None)) is not None: case = found
    return case

def what_differs(case): return {k: v for k,v in case.items() if k in ('ours',) or PLAIN.get(k, False) != v}

# Searching

def try_case(seed, i):
    case = draw(seed, i)
    try: return (i,[n for n,_ in case['ours']],*outcome(case))
    except Unbuilt as e: return i,[n for n,_ in case['ours']],'baseline',f'cannot be built: {e}',[]

def results(seed, cases, jobs):
    if jobs == 1: yield from (try_case(seed, i) for i in cases)
    else:
        with concurrent.futures.ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool: yield from pool.map(partial(try_case, seed), cases, chunksize=20)

CLASSES_OF = 'trained','refused','baseline','fault'
def record(found, seed, seconds):
    "The counts of a search, by callback and class, for a line of JSON"
    count = lambda rows: {c: sum(r[2] == c for r in rows) for c in CLASSES_OF}
    top = lambda c: dict(collections.Counter(r[3] for r in found if r[2] == c).most_common())
    return dict(seed=seed, n=len(found), **count(found), with_a_note=sum(bool(r[4]) for r in found), ms_a_case=round(1e3*seconds/len(found), 1),
                by_callback={n: count([r for r in found if n in r[1]]) for n in OURS}, faults=top('fault'), refusals=top('refused'), baselines=top('baseline'),
                notes=dict(collections.Counter(n for r in found for n in r[4]).most_common()),
                versions=dict(latentreg_fastai=latentreg_fastai.__version__, torch=torch.__version__, fastai=fastai.__version__, python=sys.version.split()[0]))

def show(case, key=None):
    print(json.dumps(what_differs(case)))
    c,k,notes = outcome(case)
    print(c, k, *notes, sep='\n   ')
    e = run(case).error
    if e is not None: traceback.print_exception(e)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=500, help='how many cases')
    p.add_argument('--first', type=int, default=0, help='the number of the first')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--jobs', type=int, default=1, help='processes')
    p.add_argument('--only', type=int, help='show one case')
    p.add_argument('--smaller', type=int, help='show one case of a fault, as simple as it can be')
    p.add_argument('--record', help='append the counts to this file, as a line of JSON')
    p.add_argument('--faults', help='write the faults to this file, a line of JSON each, the first of each kind as simple as it can be')
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.only is not None: return show(draw(a.seed, a.only))
    if a.smaller is not None:
        case = draw(a.seed, a.smaller)
        return show(smaller(case, outcome(case)[1]))
    start,found = time.time(),[]
    for r in results(a.seed, range(a.first, a.first+a.n), a.jobs):
        found.append(r)
        if r[2] == 'fault' or len(found)%500 == 0: print(len(found), f'{time.time()-start:.0f} s', r[0], r[2], r[3], flush=True)
    rec = record(found, a.seed, time.time()-start)
    print(f"{rec['n']} cases of seed {rec['seed']}, {rec['ms_a_case']} ms each:", *(f'{rec[c]} {c}' for c in CLASSES_OF), f"{rec['with_a_note']} with a warning")
    for n,c in rec['by_callback'].items(): print(f'  {n:22}', *(f'{v:5} {k}' for k,v in c.items()))
    for what in ('faults','baselines','notes','refusals'):
        print(what)
        for k,v in rec[what].items(): print(f'  {v:5} {k}')
    if a.record:
        with open(a.record, 'a') as f: f.write(json.dumps(rec, ensure_ascii=False)+'\n')
    if a.faults:
        kinds = {}
        for r in found:
            if r[2] == 'fault': kinds.setdefault(r[3], []).append(r[0])
        with open(a.faults, 'w') as f:
            for key,cases in sorted(kinds.items(), key=lambda o: -len(o[1])):
                f.write(json.dumps(dict(fault=key, times=len(cases), cases=cases[:10], example=what_differs(smaller(draw(a.seed, cases[0]), key))), ensure_ascii=False)+'\n')

if __name__ == '__main__': main()
