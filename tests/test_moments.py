"The penalties on moments, `VarianceRegularizer`, `CovarianceRegularizer` and `ActivationL1`, with input that cannot do."
import pytest
from common import *

PENALTIES = [VarianceRegularizer, CovarianceRegularizer, ActivationL1]

@pytest.mark.parametrize('cls', PENALTIES)
@pytest.mark.parametrize('weight', [-1, NAN, math.inf, 'strong', None])
def test_weight(cls, weight): raises([cls.__name__, 'weight', '0 or more', repr(weight)], lambda: cls(weight))

@pytest.mark.parametrize('cls', PENALTIES)
def test_schedule_below_zero(cls): raises([cls.__name__, 'weight', '0 or more'], lambda: new_learner().fit(1, cbs=cls(SchedLin(.1,-1.))))

def test_no_linear_layer():
    "A convolution may make the prediction too; where nothing with weights does, a layer must be named"
    model = nn.Sequential(nn.Conv2d(1,3,3), nn.ReLU(), nn.Conv2d(3,3,1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    learn,cb = new_learner(model=model),VarianceRegularizer()
    learn.fit(1, cbs=[cb, Probe(after_loss=lambda l: cb.site and test_eq(str(cb.site), "2:input"), run_valid=False)])
    class Own(nn.Module):
        def __init__(self): super().__init__(); self.act,self.w = nn.ReLU(),nn.Parameter(torch.randn(64,3))
        def forward(self, x): return self.act(x.flatten(1)@self.w)
    raises(['VarianceRegularizer', 'no layer with weights makes the prediction', '`layer` must be given', 'the layers are act'], lambda: new_learner(model=Own()).fit(1, cbs=VarianceRegularizer()))

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
