"Every penalty against loops written from the class-wise paper's Eqs. 1-6 and Table 1; the references share no code with the package."
import pytest, torch
from torch import Tensor, tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from fastai.torch_core import TensorCategory, TensorImage
from latentreg_fastai.stats import (activation_l1, classwise_covariance_penalty, classwise_variance_penalty, covariance_penalty,
                                    variance_penalty)

K = 7   # classes of the data set

# The fast functions with one signature; some of them have no use for labels.
FAST = {
    'VR':    lambda z, y, k=K: variance_penalty(z),
    'CR':    lambda z, y, k=K: covariance_penalty(z),
    'cw-VR': lambda z, y, k=K: classwise_variance_penalty(z, y, k),
    'cw-CR': lambda z, y, k=K: classwise_covariance_penalty(z, y, k),
    'L1':    lambda z, y, k=K: activation_l1(z),
}
every     = pytest.mark.parametrize('name', FAST)
classwise = pytest.mark.parametrize('name', ['cw-VR', 'cw-CR'])

# The references: lists of numbers, one sum a line

def mean(z, s, i):   return sum(z[n][i] for n in s)/len(s)                                             # Eqs. 1 and 4
def cov(z, s, i, j):
    mi,mj = mean(z, s, i),mean(z, s, j)
    return sum((z[n][i]-mi)*(z[n][j]-mj) for n in s)/len(s)                                            # Eqs. 2, 3, 5 and 6

def groups(name, y):
    "The sets of samples that Ω sums over and the number it divides by: each class, or all samples"
    if not name.startswith('cw'): return [range(len(y))], 1
    return [s for k in range(K) if (s := [n for n,c in enumerate(y) if c == k])], K                    # an empty class adds 0

def slow(name, z, y):
    "Ω, Table 1 on the left"
    units = range(len(z[0]))
    if name == 'L1': return sum(abs(a) for row in z for a in row)/len(z)/len(units)
    sets,k = groups(name, y)
    if name.endswith('VR'): return sum(cov(z, s, i, i) for s in sets for i in units)/k/len(units)
    if len(units) == 1: return 0.                                                                      # no pair
    return sum(cov(z, s, i, j)**2 for s in sets for i in units for j in range(i))*2/k/len(units)/(len(units)-1)

def slow_grad(name, z, y):
    "∂Ω/∂z, Table 1 on the right"
    I,g = len(z[0]),[[0.]*len(z[0]) for _ in z]
    if name == 'L1': return [[((a > 0)-(a < 0))/len(z)/I for a in row] for row in z]
    sets,k = groups(name, y)
    for s in sets:
        mu = [mean(z, s, i) for i in range(I)]
        c = [[cov(z, s, i, j) for j in range(I)] for i in range(I)] if name.endswith('CR') else None
        for n in s:
            for i in range(I):
                if c is None: g[n][i] = 2/(k*I*len(s))*(z[n][i]-mu[i])
                elif I > 1:   g[n][i] = 4/(k*I*(I-1)*len(s))*sum(c[i][j]*(z[n][j]-mu[j]) for j in range(I) if j != i)
    return g

def features(*shape, seed=0, dtype=torch.float64):
    "Skewed, correlated features whose means are not 0, as after a ReLU"
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(*shape, generator=g, dtype=torch.float64)
    return (z + .5*z.roll(1, -1) + 1 + torch.arange(len(z)).view(-1, *[1]*(len(shape)-1))/len(z)).to(dtype)

def labels(kind, n, seed=0):
    return {'random': torch.randint(0, K, (n,), generator=torch.Generator().manual_seed(seed)),
            'gaps':   tensor([6,2,2,6,0,6])[torch.arange(n)%6].where(torch.arange(n) > 0, 3),          # 3 once; 1, 4, 5 never
            'one':    torch.full((n,), 4),
            'single': torch.arange(n)%K if n > K else torch.randperm(n)}[kind]                         # one sample a class, if they suffice

def value_and_grad(f, z, *args):
    z = z.detach().clone().requires_grad_()
    v = f(z, *args)
    return v.detach(),torch.autograd.grad(v, z)[0]

def same(a, b, tol=1e-10): torch.testing.assert_close(a, b, rtol=tol, atol=tol)

# I ≤ N and I > N are two forms of CR, I² ≤ N and I² > N two of cw-CR; of each the last that fits and the first that does not.
SHAPES = [(12,3), (9,3), (8,3), (30,5), (6,6), (6,7), (3,17), (13,1), (5,2,2,3), (40,2,1,3), (1,4), (2,3)]

@every
@pytest.mark.parametrize('kind', ['random', 'gaps', 'one', 'single'])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_value_and_gradient_are_the_papers(name, shape, kind):
    z,y = features(*shape, seed=sum(shape)),labels(kind, shape[0], seed=len(shape))
    value,grad = value_and_grad(FAST[name], z, y)
    rows,targets = z.flatten(1).tolist(),y.tolist()
    assert value.dtype == torch.float64 and value.shape == ()
    same(value, tensor(slow(name, rows, targets), dtype=torch.float64))
    same(grad.flatten(1), tensor(slow_grad(name, rows, targets), dtype=torch.float64))

@every
@pytest.mark.parametrize('seed', range(6))
def test_random_shapes(name, seed):
    g = torch.Generator().manual_seed(seed)
    n,i = torch.randint(2, 24, (2,), generator=g).tolist()
    z,y = 3*features(n, i, seed=seed),labels('random', n, seed)
    value,grad = value_and_grad(FAST[name], z, y)
    same(value, tensor(slow(name, z.tolist(), y.tolist()), dtype=torch.float64))
    same(grad, tensor(slow_grad(name, z.tolist(), y.tolist()), dtype=torch.float64))

@every
@pytest.mark.parametrize('shape', [(9,2), (5,4), (4,5), (3,2,1,2)], ids=str)
def test_gradcheck(name, shape):
    assert torch.autograd.gradcheck(lambda z: FAST[name](z, labels('gaps', shape[0])), features(*shape).requires_grad_())

def test_figures_worked_by_hand():
    "Two units over two classes: means (1,2) and (5,5), so that every figure can be done in the head"
    z,y = tensor([[0.,1], [2,3], [5,5]]),tensor([0,0,1])
    assert classwise_variance_penalty(z, y, 2) == .5        # v⁰ = (1,1), v¹ = 0: (1+1)/(2·2)
    assert classwise_covariance_penalty(z, y, 2) == .5      # c⁰₁₂ = 1, one pair: 1/2
    assert activation_l1(z) == 16/6

@every
def test_one_sample_gives_zero_and_a_finite_gradient(name):
    for shape in [(1,5), (1,1), (1,2,3,3)]:
        value,grad = value_and_grad(FAST[name], features(*shape), tensor([3]))
        assert grad.isfinite().all()
        if name != 'L1': assert value == 0 and (grad == 0).all()

@pytest.mark.parametrize('name', ['CR', 'cw-CR'])
@pytest.mark.parametrize('shape', [(6,1), (6,), (6,1,1,1)], ids=str)
def test_a_single_unit_has_no_covariance(name, shape):
    value,grad = value_and_grad(FAST[name], features(*shape), labels('gaps', 6))
    assert value == 0 and (grad == 0).all()

@every
def test_uncorrelated_or_equal_features_are_never_negative(name):
    "Round-off may not turn a penalty that is 0 into a reward"
    for shape in [(4,9), (9,4), (40,3)]:
        z = (features(shape[1], dtype=torch.float32)*1e3).expand(shape)   # all rows the same
        assert FAST[name](z, labels('gaps', shape[0])) >= 0
    for seed in range(20):
        z = torch.zeros(4, 6)
        z[:,0] = 1e3*features(4, 1, seed=seed)[:,0]                       # one unit alone moves: the exact covariance penalty is 0
        assert FAST[name](z, torch.zeros(4, dtype=torch.long)) >= 0

@every
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('shape', [(8,20), (20,8), (20,3)], ids=str)
def test_half_precision_is_upcast(name, dtype, shape):
    z,y = (1000*features(*shape)).to(dtype),labels('random', shape[0])    # squares beyond the largest float16
    value,grad = value_and_grad(FAST[name], z, y)
    up,up_grad = value_and_grad(FAST[name], z.float(), y)
    assert value.dtype == torch.float32 and value.isfinite() and torch.equal(value, up)
    assert grad.dtype == dtype and torch.equal(grad, up_grad.to(dtype))

@every
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('shape', [(8,20), (20,8), (20,3)], ids=str)
def test_autocast_changes_nothing(name, dtype, shape):
    z,y = features(*shape, dtype=dtype).requires_grad_(),labels('random', shape[0])
    value,grad = value_and_grad(FAST[name], z, y)
    with torch.autocast('cpu', torch.bfloat16):
        assert (z.float()@z.float().T).dtype == torch.bfloat16            # autocast is at work
        cast = FAST[name](z, y)
        assert torch.is_autocast_enabled('cpu')                           # and goes on afterwards
    cast_grad, = torch.autograd.grad(cast, z)                             # outside, as PyTorch asks and fastai does
    assert cast.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(cast, value) and torch.equal(cast_grad, grad)

@every
def test_tensor_subclasses_are_taken_and_plain_tensors_returned(name):
    z,y = features(6, 2, 3, 3),labels('gaps', 6)
    value,grad = value_and_grad(FAST[name], z.as_subclass(TensorImage), y.as_subclass(TensorCategory))
    assert type(value) is Tensor
    want,want_grad = value_and_grad(FAST[name], z, y)
    assert torch.equal(value, want) and torch.equal(grad.as_subclass(Tensor), want_grad)

@every
def test_memory_format_is_of_no_account(name):
    z,y = features(6, 4, 3, 3),labels('random', 6)
    same(FAST[name](z.contiguous(memory_format=torch.channels_last), y), FAST[name](z, y))

@classwise
@pytest.mark.parametrize('shape', [(12,3), (12,9)], ids=str)
@pytest.mark.parametrize('relabel', [lambda y: y+10**12, lambda y: -5*y-1, lambda y: (K-1-y).int(), lambda y: y.to(torch.uint8)])
def test_only_which_labels_are_equal_counts(name, shape, relabel):
    "Labels beyond `n_classes` are the caller's business: they neither crash nor change a penalty"
    z,y = features(*shape),labels('random', 12)
    for got,want in zip(value_and_grad(FAST[name], z, relabel(y)), value_and_grad(FAST[name], z, y)): same(got, want)

@every
def test_the_order_of_samples_is_of_no_account(name):
    z,y = features(20, 4),labels('random', 20)
    p = torch.randperm(20)
    same(FAST[name](z[p], y[p]), FAST[name](z, y))

class Ops(TorchDispatchMode):
    "Counts the operations and keeps the size of the largest result"
    def __init__(self):
        super().__init__()
        self.n,self.largest = 0,0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.n += 1
        self.largest = max([self.largest, *(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor))])
        return out

def cost(name, z, y, k):
    with Ops() as ops: value,_ = value_and_grad(FAST[name], z, y, k)
    return value,ops.n,ops.largest

@classwise
@pytest.mark.parametrize('shape', [(16,3), (16,24)], ids=str)
def test_many_classes_cost_nothing(name, shape):
    z,y = features(*shape),torch.arange(16)%8
    few,n,largest = cost(name, z, y, 10)
    many,*rest = cost(name, z, y, 21_000)
    same(many*2100, few)
    assert rest == [n,largest] and largest < 21_000
    assert cost(name, z, y*0, 10)[1:] == (n,largest)          # as many operations for one class as for eight: there is no loop

@pytest.mark.parametrize('name,shape,most', [('CR',(100,4),400), ('CR',(4,100),400), ('cw-CR',(200,4),200*4*4), ('cw-CR',(20,200),20*200)])
def test_the_smaller_product_is_taken(name, shape, most):
    "N×N and I×I are needless where the other is smaller"
    assert cost(name, features(*shape), torch.arange(shape[0])%3, 10)[2] <= most

@every
@pytest.mark.parametrize('shape', [(16,3), (16,24), (24,16)], ids=str)
def test_no_step_waits_for_a_value(name, shape):
    "Fake tensors have no values: `.item()`, `nonzero` or a boolean index, which would wait for the device, raise"
    with FakeTensorMode() as fake:
        with pytest.raises(DataDependentOutputException): fake.from_tensor(features(4)).sum().item()
        value,grad = value_and_grad(FAST[name], fake.from_tensor(features(*shape)), fake.from_tensor(torch.arange(shape[0])%5))
    assert value.shape == () and grad.shape == shape
