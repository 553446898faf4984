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
