"Bad input: each a clear error that names the callback and says what to do."
import pytest
from common import *

def raises(match, f, exc=(ValueError,TypeError)):
    "`f` fails with a message that holds all of `match`"
    with pytest.raises(exc) as e: f()
    for m in match: assert m in str(e.value), f'{m!r} is not in {e.value}'

NAN = float('nan')
PENALTIES = [VarianceRegularizer, CovarianceRegularizer, ActivationL1]

@pytest.mark.parametrize('cls', PENALTIES)
@pytest.mark.parametrize('weight', [-1, NAN, math.inf, 'strong', None])
def test_weight(cls, weight): raises([cls.__name__, 'weight', '0 or more', repr(weight)], lambda: cls(weight))

@pytest.mark.parametrize('alpha', [0, -.1, NAN, None])
def test_alpha(alpha): raises(['ManifoldMixup', 'alpha', 'above 0', repr(alpha)], lambda: ManifoldMixup(alpha))

@pytest.mark.parametrize('cls', PENALTIES)
def test_schedule_below_zero(cls): raises([cls.__name__, 'weight', '0 or more'], lambda: new_learner().fit(1, cbs=cls(SchedLin(.1,-1.))))

BAD_LAYERS = {'conv9': ["no layer 'conv9'", 'the layers are 0, 0.0'], '2.2': ["no layer '2.2'", 'did you mean'], 'x*': ["no layer 'x*'"], 17: ['no layer 17'],
              nn.LSTM: ['no layer', 'LSTM'], 'no:way': ["neither 'name' nor 'name:input'"]}
@pytest.mark.parametrize('layer', BAD_LAYERS, ids=str)
@pytest.mark.parametrize('cls', [*PENALTIES, ManifoldMixup])
def test_layer_that_is_not_there(cls, layer):
    kw = 'layers' if cls is ManifoldMixup else 'layer'
    learn,before = new_learner(),None
    before = weights(learn)
    raises([cls.__name__, f'{kw}=', *BAD_LAYERS[layer]], lambda: learn.fit(1, cbs=cls(**{kw: layer})))
    assert same(weights(learn), before)                  # it failed before the first step

@pytest.mark.parametrize('cls', PENALTIES)
def test_layer_of_another_model(cls): raises([cls.__name__, 'not part of the model'], lambda: new_learner().fit(1, cbs=cls(layer=net()[0])))
def test_layer_of_a_wrong_kind(): raises(['VarianceRegularizer', '3.5'], lambda: new_learner().fit(1, cbs=VarianceRegularizer(layer=3.5)))

class Unused(nn.Module):
    def __init__(self): super().__init__(); self.body,self.spare = net(),nn.Linear(3,3)
    def forward(self, x): return self.body(x)

@pytest.mark.parametrize('cb', [lambda: VarianceRegularizer(), lambda: ManifoldMixup(layers='spare', input_mixup=False)])
def test_layer_that_is_never_reached(cb): raises(['never reached', 'spare'], lambda: new_learner(model=Unused()).fit(1, cbs=cb()))

class Empty(nn.Sequential):
    def parameters(self, recurse=True): return iter([nn.Parameter(torch.zeros(1))])

@pytest.mark.parametrize('cls', [*PENALTIES, ManifoldMixup])
def test_empty_model(cls):
    dls = tensor_dls((torch.randn(24,3),data()[1]), (torch.randn(12,3),data(12)[1]), bs=8, device='cpu')
    raises([cls.__name__, 'no layers'] + (['give `layers`'] if cls is ManifoldMixup else []), lambda: new_learner(model=Empty(), dls=dls).fit(1, cbs=cls(**({'input_mixup': False} if cls is ManifoldMixup else {}))))

def test_no_linear_layer():
    model = nn.Sequential(nn.Conv2d(1,3,3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    raises(['VarianceRegularizer', 'no nn.Linear', '`layer` must be given', 'the layers are 0, 1, 2'], lambda: new_learner(model=model).fit(1, cbs=VarianceRegularizer()))

FLOAT = data()[1][:,None]*torch.ones(1,3)
@pytest.mark.parametrize('y,match', [(FLOAT, ['float32', '(8, 3)']), (torch.zeros(24,3,dtype=torch.long), ['int64', '(8, 3)'])], ids=['one-hot','several'])
@pytest.mark.parametrize('cls', PENALTIES[:2])
def test_classwise_needs_one_label_a_sample(cls, y, match):
    x = data()[0]
    learn = new_learner(dls=tensor_dls((x,y), (x,y), bs=8, device='cpu', vocab=range(3)), loss_func=lambda p,y: F.mse_loss(p, y.float()), metrics=[])
    before = weights(learn)
    raises([cls.__name__, 'one integer label a sample', 'classwise=False', *match], lambda: learn.fit(1, cbs=cls()), TypeError)
    assert same(weights(learn), before)
    learn.fit(1, cbs=cls(classwise=False))               # as the message says

@pytest.mark.parametrize('cls', PENALTIES[:2])
def test_labels_beyond_n_classes(cls):
    raises([cls.__name__, '`n_classes` is 2', 'the data has 3 classes'], lambda: new_learner().fit(1, cbs=cls(n_classes=2)))
    x,y = data()
    dls = DataLoaders.from_dsets(list(zip(x,y)), list(zip(x,y)), bs=8, num_workers=0)   # these do not tell how many classes there are
    raises([cls.__name__, 'labels run from 0 to 2', '2 classes, 0 to 1', 'n_classes'], lambda: new_learner(dls=dls).fit(1, cbs=cls(n_classes=2)))
    new_learner(dls=dls).fit(1, cbs=cls())               # the width of the output is enough

@pytest.mark.parametrize('n', [0, -1, 2.5, 'three'])
def test_n_classes(n): raises(['VarianceRegularizer', 'n_classes', repr(n)], lambda: VarianceRegularizer(n_classes=n))

def test_rows_that_are_not_samples():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64,6), nn.Unflatten(1,(2,3)), nn.Flatten(0,1), nn.Linear(3,3), nn.Unflatten(0,(-1,2)), nn.Flatten(), nn.Linear(6,3))
    raises(['VarianceRegularizer', '16 rows', '8 labels', 'layer'], lambda: new_learner(model=model).fit(1, cbs=VarianceRegularizer(layer='4')))
    raises(['ManifoldMixup', '16 rows', 'batch of 8', 'layers'], lambda: new_learner(model=model).fit(1, cbs=ManifoldMixup(layers='4', input_mixup=False)))

# ManifoldMixup

def test_nothing_to_mix(): raises(['ManifoldMixup', 'nothing to mix'], lambda: ManifoldMixup(layers=[], input_mixup=False))
def test_beside_fastais_mixup(): raises(['ManifoldMixup', 'MixUp', 'take one'], lambda: new_learner().fit(1, cbs=[MixUp(), ManifoldMixup()]))

def test_per_item_needs_a_reduction():
    plain = lambda p,y: F.cross_entropy(p, y)
    raises(['ManifoldMixup', 'per_item=True', 'reduction'], lambda: new_learner(loss_func=plain).fit(1, cbs=ManifoldMixup(per_item=True)))
    new_learner(loss_func=plain).fit(1, cbs=ManifoldMixup())
    new_learner(loss_func=F.cross_entropy).fit(1, cbs=ManifoldMixup(per_item=True))

def test_integers_cannot_be_mixed():
    class Bag(nn.Module):
        def __init__(self): super().__init__(); self.ids,self.emb,self.fc = nn.Identity(),nn.Embedding(9,4),nn.Linear(4,3)
        def forward(self, x): return self.fc(self.emb(self.ids(x)).mean(1))
    x = torch.randint(0, 9, (24,5))
    dls = tensor_dls((x,data()[1]), (x,data()[1]), bs=8, device='cpu')
    raises(['ManifoldMixup', 'ids', 'int64', 'cannot be mixed'], lambda: new_learner(model=Bag(), dls=dls).fit(1, cbs=ManifoldMixup(layers='ids', input_mixup=False)))
    assert [str(s) for s in mixing_sites(Bag(), (x,))] == ['emb']

def test_targets_that_are_no_tensors():
    learn = new_learner(loss_func=lambda p,y: p.square().mean(), metrics=[])
    raises(['ManifoldMixup', 'targets must be tensors'], lambda: learn.fit(1, cbs=[ManifoldMixup(), Probe(order=0, before_batch=lambda l: setattr(l, 'yb', (['a','b'],)))]), TypeError)

def test_a_penalty_without_a_penalty():
    class Nothing(LatentCallback): pass
    raises(['Nothing needs a method `penalty'], lambda: new_learner().fit(1, cbs=Nothing()), NotImplementedError)

def test_other_callbacks_when_going_on(tmp_path):
    class Counter_(Callback):
        n = 0
        def state_dict(self): return dict(n=self.n)
        def load_state_dict(self, s): self.n = s['n']
        def after_batch(self): self.n += 1
    learn = new_learner(path=tmp_path)
    learn.fit(2, cbs=[c := Counter_(), TrainingSaver()])
    raises(["['counter_']", 'cbs'], lambda: new_learner(path=tmp_path).load_training('training'))
    new_learner(path=tmp_path).load_training('training', cbs=(d := Counter_()))
    assert d.n == c.n == 8

def test_a_function_that_finds_no_layer(): raises(['VarianceRegularizer', 'returned None'], lambda: new_learner().fit(1, cbs=VarianceRegularizer(layer=lambda m: None)))

# PhantomEmbedding, ITRA and what they are compared with

REFUSED = [
    *[(partial(PhantomEmbedding, k), ['PhantomEmbedding', '`k`', '1 or more', repr(k)]) for k in (0, -1, 1.5, 'two', None)],
    *[(partial(PhantomEmbedding, alpha=a), ['PhantomEmbedding', '`alpha`', 'above 0', repr(a)]) for a in (0, -1., NAN, math.inf, 'a', None)],
    *[(partial(PhantomEmbedding, source=s), ['PhantomEmbedding', '`source`', "'dataset' or 'batch'", repr(s)]) for s in ('datset', 'queue', None)],
    *[(partial(PhantomEmbedding, aggregate=a), ['PhantomEmbedding', '`aggregate`', "'mean' or a function", repr(a)]) for a in ('men', 3, None)],
    *[(partial(c, w), [c.__name__, '`weight`', '0 or more', repr(w)]) for c in (ITRA, CenterLoss, WeightL1) for w in (-1, NAN, math.inf, 'strong', None)],
    *[(partial(ITRA, warmup=w), ['ITRA', '`warmup`', 'below 1', repr(w)]) for w in (1, 1., -.1, NAN, 'x', None)],
    *[(partial(ITRA, sigma=s), ['ITRA', '`sigma`', 'above 0', repr(s)]) for s in (0, -1., NAN, 'median')],
    *[(partial(ITRA, queue_len=n), ['ITRA', '`queue_len`', 'above 0', repr(n)]) for n in (0, -1, 1.5, None)],
    *[(partial(ITRA, source=s), ['ITRA', '`source`', "'dataset', 'split' or 'queue'", repr(s)]) for s in ('datset', 'batch', None)],
    *[(partial(ITRA, source=s, **{k: True}), ['ITRA', f'`{k}=True`', "source='dataset'"]) for k in ('separate','matched') for s in ('split','queue')],
    *[(partial(CenterLoss, lr=r), ['CenterLoss', '`lr`', repr(r)]) for r in (0, -.1, 1.5, NAN, 'x', None)],
    *[(partial(DisturbLabel, p), ['DisturbLabel', '`p`', '0 to 1', repr(p)]) for p in (-.1, 1.1, NAN, 'x', None)],
    *[(partial(c, n_classes=n), [c.__name__, '`n_classes`', 'above 0', repr(n)]) for c in (ITRA, CenterLoss, DisturbLabel) for n in (0, -1, 2.5, 'three')],
]
@pytest.mark.parametrize('make,match', REFUSED, ids=lambda o: f'{o.func.__name__}{o.args}{o.keywords}' if isinstance(o, partial) else '')
def test_arguments(make, match): raises(match, make)

NEW = {'PhantomEmbedding': PhantomEmbedding, 'PhantomEmbedding batch': partial(PhantomEmbedding, source='batch'),
       **{f'ITRA {s}': partial(ITRA, source=s, warmup=0.) for s in ('dataset','split','queue')}, 'ITRA matched': partial(ITRA, matched=True, warmup=0.),
       'ITRA separate': partial(ITRA, separate=True, warmup=0.), 'CenterLoss': CenterLoss, 'DisturbLabel': DisturbLabel, 'WeightL1': WeightL1}
new   = pytest.mark.parametrize('name', NEW)
item_labels = lambda name: 'item_labels' if name.startswith('ITRA') else 'labels'   # ITRA's `labels` are those of the batch
among = lambda *ns: pytest.mark.parametrize('name', [n for n in NEW if n.startswith(ns)])
cls_of = lambda name: name.split()[0]

def refused(match, learn, cbs, exc=(ValueError,TypeError), trained=False):
    "The fit fails with a message that holds all of `match`, and leaves the learner as it was"
    before,loss,loader,model,mine = [p.clone() for p in learn.model.parameters()],learn.loss_func,learn.dls.train,learn.model,list(learn.cbs)
    raises(match, lambda: learn.fit(1, 1e-2, cbs=cbs), exc)
    assert learn.loss_func is loss and learn.dls.train is loader and learn.model is model and list(learn.cbs) == mine and not hooks(model)
    if trained: return                                   # it was noticed at the end of an epoch
    assert all(torch.equal(*p) for p in zip(learn.model.parameters(), before))

def items_dls(items, bs=8): return DataLoaders.from_dsets(items, items, bs=bs, num_workers=0)

class Silent:
    "A data set that does not tell its targets without reading items"
    def __init__(self, n=24): self.x,self.y = data(n)
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i],self.y[i]

@among('PhantomEmbedding', 'ITRA matched')
def test_labels_that_cannot_be_found(name):
    if name.endswith('batch'): return new_learner(dls=items_dls(Silent())).fit(1, cbs=NEW[name]())            # it looks at the batch alone
    learn = new_learner(dls=items_dls(Silent()))
    refused([cls_of(name), 'no labels', 'Silent', f'pass `{item_labels(name)}=`'], learn, NEW[name]())
    for labels in (data()[1], data()[1].numpy(), data()[1].tolist()): learn.fit(1, 1e-3, cbs=NEW[name](**{item_labels(name): labels}))   # as the message says

@pytest.mark.parametrize('name', ['PhantomEmbedding','ITRA matched'])
@pytest.mark.parametrize('labels,match', [(torch.arange(20)%3, ['20 labels', '24 items']), (torch.rand(24), ['float32', 'one integer']), (['a','b']*12, ['one integer']), (F.one_hot(data()[1]), ['(24, 3)'])],
                         ids=['few','float','str','one-hot'])
def test_wrong_labels(name, labels, match): refused([cls_of(name), f'`{item_labels(name)}', *match], new_learner(), NEW[name](**{item_labels(name): labels}))

@pytest.mark.parametrize('dls', [lambda: None, lambda: items_dls(Silent())], ids=['tensors','items'])
def test_labels_that_are_not_the_targets(dls):
    refused(['PhantomEmbedding', 'more than one class', '`labels=`'], new_learner(dls=dls()), PhantomEmbedding(labels=data()[1].roll(1)//2), trained=True)
    new_learner(dls=dls()).fit(1, 1e-3, cbs=PhantomEmbedding(labels=(data()[1]+1)%3 + 7))                      # other names for the same classes

TARGETS = {'regression': torch.linspace(-1, 1, 24), 'regression, a column': torch.linspace(-1, 1, 24)[:,None], 'one-hot': F.one_hot(data()[1]).float(), 'several labels': torch.arange(72).view(24,3)%5%2}
def target_learner(target, **kwargs):
    x,y = data()[0],TARGETS[target]
    loss = lambda p,y: F.mse_loss(p if y.ndim > 1 and y.shape[1] > 1 else p[:,0], (y if y.ndim > 1 and y.shape[1] > 1 else y.view(-1)).float())
    return new_learner(dls=tensor_dls(TensorItems(x, y), TensorItems(x, y), bs=8, device='cpu'), loss_func=loss, metrics=[], **kwargs)

@new
@pytest.mark.parametrize('target', TARGETS)
def test_targets_that_are_not_one_label_a_sample(name, target):
    learn,by_loader = target_learner(target),name in ('PhantomEmbedding','ITRA matched')                       # there `labels_of` is the first to look
    if name == 'WeightL1': learn.fit(1, cbs=WeightL1()); return
    cb = NEW[name](n_classes=3) if name == 'DisturbLabel' else NEW[name]()
    refused([cls_of(name), 'one integer', 'float32' if target != 'several labels' else 'int64'], learn, cb, (ValueError,TypeError) if by_loader else TypeError)
    if by_loader: refused([cls_of(name), 'one integer label a sample', str((8,*TARGETS[target].shape[1:]))], learn, NEW[name](**{item_labels(name): data()[1]}), TypeError)
    if name.startswith('ITRA') and not by_loader: raises(['classwise=False'], lambda: learn.fit(1, cbs=cb))

@pytest.mark.parametrize('target', TARGETS)
@among('ITRA')
def test_itra_of_the_whole_takes_any_target(name, target):
    learn,cb = target_learner(target),NEW[name](classwise=False, **({'item_labels': data()[1]} if 'matched' in name else {}))
    learn.fit(2, 1e-2, cbs=cb)
    terms = learn.recorder.terms['itra']
    assert len(terms) == 6 and all(map(math.isfinite, terms)) and max(terms) > 0 and all(v.isfinite().all() for v in weights(learn).values())

def plain_net(): set_seed(0); return nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.Tanh(), nn.Linear(8,3))

@new
def test_batches_of_one_sample(name):
    learn,cb,seen = new_learner(model=plain_net(), dls=tensor_dls(data(), data(12), bs=1, device='cpu')),NEW[name](),[]
    learn.fit(1, 1e-3, cbs=[cb, Probe(order=5, run_valid=False, after_loss=lambda l: seen.append((l.loss.item(), l.loss_grad.item(), getattr(cb, 'term', None))))])
    assert len(seen) == 24 and all(math.isfinite(v) for l,g,_ in seen for v in (l,g)) and all(v.isfinite().all() for v in weights(learn).values())
    if name == 'ITRA split': assert all(t == 0 and l == g for l,g,t in seen)                                    # there is no second batch
    if name == 'ITRA queue': assert seen[0][2] == 0 and any(t > 0 for *_,t in seen[1:])
    if name == 'PhantomEmbedding batch':
        for l,g,t in seen: close([g, t.item()], [l]*2, eps=1e-6)                                                # the mean of a lone sample is the sample

@new
def test_a_class_with_one_sample(name):
    x,y = data()
    y = y.clamp_max(1); y[5] = 2
    learn,cb,seen = new_learner(model=plain_net(), dls=tensor_dls((x,y), (x,y), bs=8, device='cpu')),NEW[name](**({'k': 3} if 'Phantom' in name else {})),[]
    def look(l):
        pairs = [(a, b) for a,b,c in zip(l.pred, cb._rows.pred_more, l.y) if c == 2] if 'Phantom' in name else []
        for a,b in pairs: torch.testing.assert_close(a, b)
        seen.append(len(pairs))
    learn.fit(2, 1e-2, cbs=[cb, Probe(order=5, run_valid=False, after_loss=look)])
    assert all(v.isfinite().all() for v in weights(learn).values())
    if 'Phantom' in name: assert sum(seen) == 2                                                                 # it was in a batch once an epoch

@pytest.mark.parametrize('layer', BAD_LAYERS, ids=str)
@among('PhantomEmbedding', 'ITRA', 'CenterLoss', 'WeightL1')
def test_layer_of_the_new_that_is_not_there(name, layer):
    match = ['no layer', 'no:way'] if name == 'WeightL1' and layer == 'no:way' else BAD_LAYERS[layer]
    refused([cls_of(name), 'layer=', *match], new_learner(), NEW[name](layer=layer))

@among('PhantomEmbedding', 'ITRA', 'CenterLoss')
def test_layer_of_the_new_that_is_never_reached(name): refused([cls_of(name), *(['all of the signal must pass `layer`'] if name.endswith('batch') else ['never reached', 'spare'])], new_learner(model=Unused()), NEW[name]())

class Residual(nn.Module):
    def __init__(self): super().__init__(); self.stem,self.branch,self.head = nn.Sequential(nn.Flatten(), nn.Linear(64,8)),nn.Linear(8,8),nn.Linear(8,3)
    def forward(self, x): h = self.stem(x); return self.head(h + self.branch(h))

@pytest.mark.parametrize('bs', [8,1])
@pytest.mark.parametrize('k', [2,3])
@among('PhantomEmbedding')
def test_a_layer_beside_which_signal_passes(name, k, bs):
    "k=2 is the dangerous one: as many rows leave the layer as come in, and phantoms would be added to partners"
    dls = tensor_dls(data(), data(12), bs=bs, device='cpu')
    refused(['PhantomEmbedding', 'branch', 'all of the signal'], new_learner(model=Residual(), dls=dls), NEW[name](k, layer='branch'))
    for ok in ('stem','branch:input','head','head:input'):
        if ok != 'branch:input': new_learner(model=Residual(), dls=dls).fit(1, 1e-3, cbs=NEW[name](k, layer=ok))

SHAPES = {'(N,k,I)': lambda c: c, '(N,k)': lambda c: c.mean(2), '(I,)': lambda c: c.mean((0,1)), '(N-1,I)': lambda c: c.mean(1)[:-1], '(k,I)': lambda c: c.mean(0),
          'a number': lambda c: 3., 'None': lambda c: None}
@pytest.mark.parametrize('shape', SHAPES)
@among('PhantomEmbedding')
def test_aggregate_of_a_wrong_shape(name, shape): refused(['PhantomEmbedding', '`aggregate`', '(8, 3, 8)'], new_learner(), NEW[name](3, aggregate=SHAPES[shape]))

@among('ITRA dataset', 'CenterLoss', 'DisturbLabel')
def test_n_classes_of_the_new(name):
    refused([cls_of(name), '`n_classes` is 2', '3 classes'], new_learner(), NEW[name](n_classes=2))
    if name == 'DisturbLabel':
        refused(['DisturbLabel', 'number of classes', 'give `n_classes`'], new_learner(dls=items_dls(Silent())), DisturbLabel())
        new_learner(dls=items_dls(Silent())).fit(1, cbs=DisturbLabel(n_classes=3))
    else: refused([cls_of(name), 'labels run from 0 to 2', '2 classes, 0 to 1', 'n_classes'], new_learner(dls=items_dls(Silent())), NEW[name](n_classes=2), trained=True)

@among('ITRA', 'CenterLoss')
def test_labels_out_of_range(name):
    x,y = data()
    kw = {'item_labels': y} if 'matched' in name else {}
    for low,high in ((-1,1), (1,3)):
        learn = new_learner(dls=items_dls([(a,b) for a,b in zip(x, y+low)]), loss_func=lambda p,y: p.square().mean(), metrics=[])
        refused([cls_of(name), f'labels run from {low} to {high}', '0 to 2'], learn, NEW[name](**kw), trained=True)

@pytest.mark.parametrize('other', [MixUp, CutMix, ManifoldMixup, lambda: ITRA(warmup=0.), lambda: ITRA()], ids=['MixUp','CutMix','ManifoldMixup','ITRA','ITRA warm-up'])
@among('PhantomEmbedding')
def test_phantoms_beside_what_mixes_or_adds_rows(name, other):
    for flip in (False,True):
        cbs = [other(), NEW[name]()]
        refused([type(cbs[0]).__name__, 'PhantomEmbedding', 'the batch too' if isinstance(cbs[0], ITRA) else 'would mix rows'], new_learner(), cbs[::-1] if flip else cbs)
    new_learner().fit(1, 1e-3, cbs=[ITRA(source='split', warmup=0.), NEW[name]()])
    new_learner().fit(1, 1e-3, cbs=[MixUp(), NEW[name](k=1)])                                                  # off is off

@among('PhantomEmbedding', 'ITRA')
def test_a_loader_that_draws_clusters_already(name):
    def clustered(k):
        dls = tensor_dls(data(), data(12), bs=8, device='cpu')
        dls.loaders[0] = MicroClusterDL(dls.train, k)
        return new_learner(dls=dls)
    if name == 'PhantomEmbedding':
        refused(['PhantomEmbedding', 'clusters of 3', '`k` is 2'], clustered(3), PhantomEmbedding(2))
        clustered(3).fit(1, 1e-3, cbs=PhantomEmbedding(3))
    if name in ('ITRA dataset','ITRA matched','ITRA separate'): refused(['ITRA', 'single samples', 'MicroClusterDL'], clustered(2), NEW[name]())

@new
def test_a_loader_of_torch(name):
    ds = list(zip(*data()))
    dls = DataLoaders(torch.utils.data.DataLoader(ds, 8, shuffle=True), torch.utils.data.DataLoader(ds, 8), device='cpu')
    learn,cb = new_learner(dls=dls),NEW[name](**({'n_classes': 3} if name == 'DisturbLabel' else {}))
    if name in ('PhantomEmbedding','ITRA dataset','ITRA matched','ITRA separate'): refused([cls_of(name), 'a fastai loader', 'TfmdDL', 'torch DataLoader'], learn, cb, TypeError)
    else: learn.fit(1, 1e-3, cbs=cb)

def test_a_data_set_that_cannot_be_indexed():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(list(zip(*data())))
    for name in ('PhantomEmbedding','ITRA dataset'):
        dls = DataLoaders(TfmdDL(Stream(), bs=8), TfmdDL(list(zip(*data())), bs=8), device='cpu')
        refused([cls_of(name), 'indexed', 'Stream'], new_learner(dls=dls), NEW[name](**({'labels': data()[1]} if name == 'PhantomEmbedding' else {})))
