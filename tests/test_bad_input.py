"Bad input, callback by callback: each a clear error that names the callback and says what to do."
import pytest
from common import *

PENALTIES = [VarianceRegularizer, CovarianceRegularizer, ActivationL1]

BAD_LAYERS = {'conv9': ["no layer 'conv9'", 'the layers are 0, 0.0'], '2.2': ["no layer '2.2'", 'did you mean'], 'x*': ["no layer 'x*'"], 17: ['no layer 17'],
              nn.LSTM: ['no layer', 'LSTM'], 'no:way': ["is not 'name'"]}
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
def test_layer_of_a_wrong_kind(): raises(['VarianceRegularizer', '3.5'], lambda: new_learner().fit(1, cbs=VarianceRegularizer(layer=3.5)), TypeError)

class Unused(nn.Module):
    def __init__(self): super().__init__(); self.body,self.spare = net(),nn.Linear(3,3)
    def forward(self, x): return self.body(x)

@pytest.mark.parametrize('cb', [lambda: VarianceRegularizer(layer='spare'), lambda: ManifoldMixup(layers='spare', input_mixup=False)])
def test_layer_that_is_never_reached(cb):
    raises(['never reached', 'spare', 'these would do'], lambda: new_learner(model=Unused()).fit(1, cbs=cb()))
    new_learner(model=Unused()).fit(1, cbs=[VarianceRegularizer()])   # the default is found in the pass, whatever is registered last

class Empty(nn.Sequential):
    def parameters(self, recurse=True): return iter([nn.Parameter(torch.zeros(1))])

@pytest.mark.parametrize('cls', [*PENALTIES, ManifoldMixup])
def test_empty_model(cls):
    dls = tensor_dls((torch.randn(24,3),data()[1]), (torch.randn(12,3),data(12)[1]), bs=8, device='cpu')
    raises([cls.__name__, 'no layers'] + (['give `layers`'] if cls is ManifoldMixup else []), lambda: new_learner(model=Empty(), dls=dls).fit(1, cbs=cls(**({'input_mixup': False} if cls is ManifoldMixup else {}))))

def test_rows_that_are_not_samples():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64,6), nn.Unflatten(1,(2,3)), nn.Flatten(0,1), nn.Linear(3,3), nn.Unflatten(0,(-1,2)), nn.Flatten(), nn.Linear(6,3))
    raises(['VarianceRegularizer', '16 rows', '8 labels', 'layer'], lambda: new_learner(model=model).fit(1, cbs=VarianceRegularizer(layer='4')))
    raises(['ManifoldMixup', "layers='4'", 'one floating row a sample'], lambda: new_learner(model=model).fit(1, cbs=ManifoldMixup(layers='4', input_mixup=False)))

def test_a_function_that_finds_no_layer(): raises(['VarianceRegularizer', 'returned None'], lambda: new_learner().fit(1, cbs=VarianceRegularizer(layer=lambda m: None)))

# With callbacks that add rows or compare classes

NEW = {'PhantomEmbedding': PhantomEmbedding, 'PhantomEmbedding batch': partial(PhantomEmbedding, source='batch'),
       **{f'ITRA {s}': partial(ITRA, source=s, warmup=0.) for s in ('dataset','split','queue')}, 'ITRA matched': partial(ITRA, matched=True, warmup=0.),
       'ITRA separate': partial(ITRA, separate=True, warmup=0.), 'CenterLoss': CenterLoss, 'DisturbLabel': DisturbLabel, 'WeightL1': WeightL1}
new   = pytest.mark.parametrize('name', NEW)
item_labels = lambda name: 'item_labels' if name.startswith('ITRA') else 'labels'   # ITRA's `labels` are those of the batch
among = lambda *ns: pytest.mark.parametrize('name', [n for n in NEW if n.startswith(ns)])
cls_of = lambda name: name.split()[0]

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
    numbers = target.startswith('regression')                                                                   # the data say so, before the first batch
    got = 'int64' if target == 'several labels' else 'to be regressed' if numbers and name != 'ITRA matched' else 'float32'
    refused([cls_of(name), 'one integer', got], learn, cb, (ValueError,TypeError) if by_loader else TypeError)
    if by_loader: refused([cls_of(name), 'one integer label a sample', 'to be regressed' if numbers else str((8,*TARGETS[target].shape[1:]))], learn, NEW[name](**{item_labels(name): data()[1]}), TypeError)
    if name.startswith('ITRA') and not by_loader: raises(['classwise=False'], lambda: learn.fit(1, cbs=cb), TypeError)

@pytest.mark.parametrize('target', TARGETS)
@among('ITRA')
def test_itra_of_the_whole_takes_any_target(name, target):
    learn,cb = target_learner(target),NEW[name](classwise=False, **({'item_labels': data()[1]} if 'matched' in name else {}))
    learn.fit(2, 1e-2, cbs=cb)
    terms = learn.recorder.terms['itra_loss']
    assert len(terms) == 6 and all(map(math.isfinite, terms)) and max(terms) > 0 and all(v.isfinite().all() for v in weights(learn).values())

@new
def test_batches_of_one_sample(name):
    learn,cb,seen = new_learner(model=tanh_net(), dls=tensor_dls(data(), data(12), bs=1, device='cpu')),NEW[name](),[]
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
    learn,cb,seen = new_learner(model=tanh_net(), dls=tensor_dls((x,y), (x,y), bs=8, device='cpu')),NEW[name](**({'k': 3} if 'Phantom' in name else {})),[]
    def look(l):
        pairs = [(a, b) for a,b,c in zip(l.pred, cb.rows.outputs, l.y) if c == 2] if 'Phantom' in name else []
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
def test_layer_of_the_new_that_is_never_reached(name): 
    refused([cls_of(name), 'never reached', 'spare'], new_learner(model=Unused()), NEW[name](layer='spare'))
    new_learner(model=Unused()).fit(1, cbs=NEW[name]())

@among('ITRA dataset', 'CenterLoss', 'DisturbLabel')
def test_n_classes_of_the_new(name):
    refused([cls_of(name), '`n_classes` is 2', '3 classes'], new_learner(), NEW[name](n_classes=2))
    if name == 'DisturbLabel':
        refused(['DisturbLabel', 'number of classes', 'give `n_classes`'], new_learner(dls=items_dls(Silent())), DisturbLabel())
        new_learner(dls=items_dls(Silent())).fit(1, cbs=DisturbLabel(n_classes=3))
    else: refused([cls_of(name), 'labels run from 0 to 2', '2 classes, 0 to 1', 'n_classes'], new_learner(dls=items_dls(Silent())), NEW[name](n_classes=2), trained=True)

@pytest.mark.parametrize('n_classes', [None,2])
def test_disturbed_labels_are_no_floats(n_classes):
    "Of a binary learner whose loss takes floats this is said, whatever is known of the number of classes"
    x,y = data()
    items = list(zip(x, (y > 0).float()))
    learn = new_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(64,1), nn.Flatten(0)), metrics=[], loss_func=nn.BCEWithLogitsLoss(),
                        dls=DataLoaders(DataLoader(items, bs=8), DataLoader(items, bs=8), device='cpu'))
    refused(['DisturbLabel', 'one integer label a sample', 'float32 targets of shape (8,)'], learn, DisturbLabel(n_classes=n_classes), TypeError)

@among('ITRA', 'CenterLoss')
def test_labels_out_of_range(name):
    x,y = data()
    kw = {'item_labels': y} if 'matched' in name else {}
    for low,high in ((-1,1), (1,3)):
        learn = new_learner(dls=items_dls([(a,b) for a,b in zip(x, y+low)]), loss_func=lambda p,y: p.square().mean(), metrics=[])
        refused([cls_of(name), f'labels run from {low} to {high}', '0 to 2'], learn, NEW[name](**kw), trained=True)

@new
def test_a_loader_of_torch(name):
    ds = list(zip(*data()))
    dls = DataLoaders(torch.utils.data.DataLoader(ds, 8, shuffle=True), torch.utils.data.DataLoader(ds, 8), device='cpu')
    learn,cb = new_learner(dls=dls),NEW[name](**({'n_classes': 3} if name == 'DisturbLabel' else {}))
    if name in ('PhantomEmbedding','ITRA dataset','ITRA matched','ITRA separate'): refused([cls_of(name), 'a fastai loader', 'TfmdDL', 'torch DataLoader'], learn, cb, TypeError)
    else: learn.fit(1, 1e-3, cbs=cb)
