"Every penalty against loops written from the class-wise paper's Eqs. 1-6 and Table 1; the references share no code with the package."
import math, pytest, time, torch
from torch import Tensor, tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from fastai.torch_core import TensorCategory, TensorImage
from latentreg_fastai.stats import (activation_l1, batch_clusters, classwise_covariance_penalty, classwise_mmd, classwise_variance_penalty,
                                    covariance_penalty, median_bandwidth, mmd, pairwise_distance, pairwise_sqdist, variance_penalty)
from latentreg_fastai.stats import _sorted_median

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
    same(classwise_variance_penalty(z, y, 2), tensor(.5), 1e-6)        # v⁰ = (1,1), v¹ = 0: (1+1)/(2·2)
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

# older builds for CUDA abort in the backward pass of fake tensors where there is no GPU (seen with 2.6)
fake_gpu = pytest.mark.skipif(bool(torch.version.cuda) and not torch.cuda.is_available() and tuple(map(int, torch.__version__.split('.')[:2])) < (2,13),
                              reason='this torch aborts on a fake GPU')

@every
@fake_gpu
@pytest.mark.parametrize('shape', [(16,3), (16,24), (24,16)], ids=str)
def test_no_step_waits_for_a_value(name, shape):
    "Fake tensors have no values: `.item()`, `nonzero` or a boolean index, which would wait for the device, raise"
    with FakeTensorMode():
        z,y = torch.empty(*shape, device='cuda'),torch.empty(shape[0], dtype=torch.long, device='cuda')
        with pytest.raises(DataDependentOutputException): z.sum().item()
        assert FAST[name](z.requires_grad_(), y).shape == ()      # with its gradient

# ITRA: MMD = √(mean K(x,x′) + mean K(y,y′) − 2 mean K(x,y)), K(a,b) = exp(−‖a−b‖²/σ), against the same as loops over numbers

MMD = {'MMD':    lambda z1, y1, z2, y2, s=None, squared=False, k=K: mmd(z1, z2, s, squared),
       'cw-MMD': lambda z1, y1, z2, y2, s=None, squared=False, k=K: classwise_mmd(z1, y1, z2, y2, k, s, squared)}
both     = pytest.mark.parametrize('name', MMD)
rooted   = pytest.mark.parametrize('squared', [False,True], ids=['root','squared'])

def sqd(a, b): return sum((p-q)**2 for p,q in zip(a, b))
def slow_sigma(rows):
    "The lower median over distinct pairs, as `torch.median` has it"
    d = sorted(sqd(rows[i], rows[j]) for i in range(len(rows)) for j in range(i))
    return d[(len(d)-1)//2]

def slow_mmd(a, b, s, squared):
    def mean_k(p, q):
        total = 0.
        for u in p:
            for v in q: total += math.exp(-sqd(u, v)/s)
        return total/len(p)/len(q)
    value = mean_k(a, a) + mean_k(b, b) - 2*mean_k(a, b)
    return value if squared else math.sqrt(max(value, 0.))

def slow_disc(name, z1, y1, z2, y2, s=None, squared=False):
    a,b,c1,c2 = z1.flatten(1).tolist(),z2.flatten(1).tolist(),y1.tolist(),y2.tolist()
    s = slow_sigma(a+b) if s is None else s
    if name == 'MMD': return tensor(slow_mmd(a, b, s, squared), dtype=torch.float64)
    total = 0.
    for k in range(K):
        p,q = [r for r,c in zip(a, c1) if c == k],[r for r,c in zip(b, c2) if c == k]
        if p and q: total += slow_mmd(p, q, s, squared)                                                # absent from one: adds 0
    return tensor(total/K, dtype=torch.float64)

def batches(n, m, *shape, kinds=('random','random'), seed=0, dtype=torch.float64):
    return features(n, *shape, seed=seed, dtype=dtype),labels(kinds[0], n, seed),features(m, *shape, seed=seed+50, dtype=dtype)*1.3,labels(kinds[1], m, seed+50)

def grads(f, z1, y1, z2, y2, *args, **kwargs):
    z1,z2 = z1.detach().clone().requires_grad_(),z2.detach().clone().requires_grad_()
    v = f(z1, y1, z2, y2, *args, **kwargs)
    return v.detach(),*torch.autograd.grad(v, (z1,z2))

@both
@rooted
@pytest.mark.parametrize('s', [None,.7,25.,lambda d: 1.5*d.mean()], ids=['median','.7','25','function'])
@pytest.mark.parametrize('kinds', [('random','random'), ('gaps','random'), ('gaps','one'), ('one','one'), ('single','single')], ids=str)
@pytest.mark.parametrize('shape', [(12,9,3), (5,14,6), (1,1,3), (1,6,2), (7,1,4), (20,20,2), (6,8,2,3,2), (4,4,1)], ids=str)
def test_mmd_is_the_papers(name, squared, s, kinds, shape):
    b = batches(*shape, kinds=kinds, seed=sum(shape))
    rows = (b[0].flatten(1).tolist() + b[2].flatten(1).tolist())
    fixed = 1.5*sum(sqd(p, q) for p in rows for q in rows)/len(rows)**2 if callable(s) else s
    value,*g = grads(MMD[name], *b, s, squared)
    assert value.dtype == torch.float64 and value.shape == () and value >= 0 and all(x.isfinite().all() for x in g)
    same(value, slow_disc(name, *b, fixed, squared))

@both
@rooted
@pytest.mark.parametrize('shape', [(5,4,3), (3,6,7), (4,4,2,2,2), (1,3,2)], ids=str)
def test_mmd_gradcheck(name, squared, shape):
    "By both batches; classes that are missing from one of them have no gradient"
    z1,_,z2,_ = batches(*shape)
    y1,y2 = tensor([0,1,2,0,1,3])[:shape[0]],tensor([1,0,0,4,1,0])[:shape[1]]
    for s in (3.,12.): assert torch.autograd.gradcheck(lambda a, b: MMD[name](a, y1, b, y2, s, squared), (z1.requires_grad_(), z2.requires_grad_()))

@both
@rooted
def test_no_gradient_through_the_bandwidth(name, squared):
    b = batches(11, 9, 4)
    d = pairwise_sqdist(torch.cat([b[0],b[2]]))
    for s,fixed in ((None,median_bandwidth(d).item()), (lambda d: d.mean(), d.mean().item())):
        for got,want in zip(grads(MMD[name], *b, s, squared), grads(MMD[name], *b, fixed, squared)): same(got, want, 1e-12)

@both
def test_a_bandwidth_function_gets_all_squared_distances(name):
    b,seen = batches(5, 8, 2, 2),[]
    MMD[name](*b, lambda d: (seen.append(d), d.mean())[1])
    rows = torch.cat([b[0],b[2]]).flatten(1).tolist()
    assert len(seen) == 1 and seen[0].shape == (13,13) and not seen[0].requires_grad
    same(seen[0], tensor([[sqd(p, q) for q in rows] for p in rows], dtype=torch.float64))

@both
@pytest.mark.parametrize('kind', ['plain','an outlier','most equal'])
def test_the_median_of_some_samples(name, kind):
    "The median without the samples that are not kept, as a function of the distances"
    from functools import partial
    z,y,keep = odd_batch(kind, 14, 5, 1e-9, torch.float32),torch.arange(14)%3,torch.arange(14)%5 != 3
    got = grads(MMD[name], z[:7], y[:7], z[7:], y[7:], partial(median_bandwidth, keep=keep))
    want = grads(MMD[name], z[:7], y[:7], z[7:], y[7:], odd_sigma(z[keep].tolist()))
    for a,b in zip(got, want): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6*b.abs().max().item())
    same(got[0], grads(MMD[name], z[:7], y[:7], z[7:], y[7:], lambda d: median_bandwidth(d, keep))[0], 1e-5)

def test_classes_that_one_batch_lacks_add_nothing():
    z1,_,z2,_ = batches(6, 6, 3)
    y1,y2 = tensor([0,0,1,1,2,2]),tensor([0,0,3,3,4,4])
    value,g1,g2 = grads(MMD['cw-MMD'], z1, y1, z2, y2, 2.)
    same(value*K, mmd(z1[:2], z2[:2], 2.))
    assert (g1[2:] == 0).all() and (g2[2:] == 0).all() and (g1[:2] != 0).any()
    value,g1,g2 = grads(MMD['cw-MMD'], z1, y1, z2, y1+3)                                               # none is in both
    assert value == 0 and (g1 == 0).all() and (g2 == 0).all()

@both
@rooted
@pytest.mark.parametrize('dtype', [torch.float32,torch.float64])
@pytest.mark.parametrize('shift', [0.,100.])
def test_identical_batches_have_no_discrepancy(name, squared, dtype, shift):
    "The root has no slope at 0: round-off may neither make a gradient of NaN nor a large one"
    for seed in range(8):
        z = features(40, 16, seed=seed, dtype=dtype) + shift
        p,y = torch.randperm(40, generator=torch.Generator().manual_seed(seed)),labels('random', 40, seed)
        for s in (None, 30.):
            value,g1,g2 = grads(MMD[name], z, y, z[p], y[p], s, squared)
            assert 0 <= value < (1e-12 if dtype == torch.float64 else 1e-5)
            if squared: same(torch.cat([g1,g2]), torch.zeros(80, 16, dtype=dtype), 1e-12 if dtype == torch.float64 else 1e-5)
            else: assert value == 0 and (g1 == 0).all() and (g2 == 0).all()

@both
@rooted
@pytest.mark.parametrize('dtype', [torch.float32,torch.float64])
def test_features_that_are_all_the_same(name, squared, dtype):
    "The median distance is 0"
    for z in (torch.zeros(6, 5, dtype=dtype), torch.full((6,5), 1/3, dtype=dtype), features(1, 5, dtype=dtype).expand(6, 5)):
        value,g1,g2 = grads(MMD[name], z, labels('gaps', 6), z[:4], labels('gaps', 4), None, squared)
        assert value.isfinite() and value >= 0 and g1.isfinite().all() and g2.isfinite().all()
        same(value, torch.zeros_like(value), 1e-6)

ALL = {**FAST, **{n: lambda z, y, f=f: f(z[:4], y[:4], z[4:], y[4:]) for n,f in MMD.items()}}
@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('g', [1e-6,.3,5.,1e4,65536.])
@pytest.mark.parametrize('dtype', [torch.float32,torch.float64])
def test_the_weight_of_a_term_scales_its_gradient(name, g, dtype):
    "A weight, or a scaler of gradients, of any size: 0 for rows that are equal, and the weight times the gradient for others"
    y = tensor([0,1,2,0,1,2,0,0])
    equal = torch.full((8,5), 1/3, dtype=dtype).requires_grad_()
    (g*ALL[name](equal, y)).backward()
    assert name == 'L1' or (equal.grad == 0).all(), equal.grad
    for scale in (1e-3, 1., 1e3):
        z,whole = [(features(8, 5)*scale).to(t).requires_grad_() for t in (dtype,torch.float64)]
        (g*ALL[name](z, y)).backward()
        ALL[name](whole, y).backward()
        torch.testing.assert_close((z.grad/g).double(), whole.grad, rtol=1e-3, atol=1e-4*whole.grad.abs().max().item())

@both
def test_most_features_the_same(name):
    "σ is 0, though some differ: finite all the same, with either dtype"
    for dtype in (torch.float32,torch.float64):
        z = torch.zeros(20, 3, dtype=dtype); z[0] = 1.
        for squared in (False,True):
            out = grads(MMD[name], z, labels('one', 20), z.flip(0)*2, labels('one', 20), None, squared)
            assert all(t.isfinite().all() for t in out), out

@both
def test_an_outlier_has_almost_no_gradient(name):
    z1,y1,z2,y2 = batches(30, 30, 4, kinds=('one','one'))
    z1[3] += 1e3
    for dtype in (torch.float32,torch.float64):
        _,g1,g2 = grads(MMD[name], z1.to(dtype), y1, z2.to(dtype), y2)
        rest = g1.norm(dim=1)[torch.arange(30) != 3]
        assert g1[3].norm() < 1e-5*rest.mean() and rest.mean() > 1e-6 and g2.isfinite().all()

@both
@rooted
@pytest.mark.parametrize('shape', [(64,64,32), (16,30,4,3,3), (128,128,8)], ids=str)
def test_mmd_in_float32(name, squared, shape):
    b = batches(*shape, seed=3)
    low = (b[0].float(),b[1],b[2].float(),b[3])
    for got,want in zip(grads(MMD[name], *low, None, squared), grads(MMD[name], *b, None, squared)):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5*max(1e-2, want.abs().max().item()))

@both
@pytest.mark.parametrize('dtype', [torch.float16,torch.bfloat16,torch.float32,torch.float64])
def test_mmd_under_autocast(name, dtype):
    b = batches(9, 8, 5, dtype=dtype)
    value,*g = grads(MMD[name], *b)
    with torch.autocast('cpu', torch.bfloat16):
        cast = MMD[name](z1 := b[0].clone().requires_grad_(), b[1], z2 := b[2].clone().requires_grad_(), b[3])
        assert torch.is_autocast_enabled('cpu')
    assert cast.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and torch.equal(cast, value)
    assert all(torch.equal(*p) for p in zip(torch.autograd.grad(cast, (z1,z2)), g))

@both
def test_mmd_of_tensor_subclasses(name):
    b = batches(6, 5, 2, 3)
    sub = [t.as_subclass(TensorCategory if i%2 else TensorImage) for i,t in enumerate(b)]
    got,want = grads(MMD[name], *sub),grads(MMD[name], *b)
    assert type(got[0]) is Tensor and all(torch.equal(g.as_subclass(Tensor), w) for g,w in zip(got, want))
    assert type(pairwise_sqdist(sub[0], sub[2])) is Tensor and type(batch_clusters(sub[1], torch.randperm(6), 3)) is Tensor

class NoCopies(TorchDispatchMode):
    "A tensor made of a number on the host is copied to the device by a call that waits for it; a number in an operation is not"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {t.device.type for t in tree_leaves((args, out)) if isinstance(t, Tensor)}
        assert len(devices) < 2 or 'copy' not in func.overloadpacket.__name__, func
        return out

@both
@fake_gpu
@pytest.mark.parametrize('s', [None,2.,lambda d: d.mean()], ids=['median','number','function'])
def test_no_step_of_mmd_waits_for_a_value(name, s):
    with FakeTensorMode():
        z1,z2,y1,y2 = *[torch.empty(n, 4, device='cuda') for n in (16,12)],*[torch.empty(n, dtype=torch.long, device='cuda') for n in (16,12)]
        with pytest.raises(AssertionError), NoCopies(): torch.tensor([2.]).to(z1)
        with NoCopies(): assert MMD[name](z1.requires_grad_(), y1, z2, y2, s).shape == ()             # with its gradient

@fake_gpu
def test_no_step_of_batch_clusters_waits_for_a_value():
    with FakeTensorMode():
        y = torch.empty(12, dtype=torch.long, device='cuda')
        with NoCopies(): assert batch_clusters(y, y, 3).shape == (12,3)

def mmd_cost(y1, y2, k):
    z1,_,z2,_ = batches(16, 16, 3)
    with Ops() as ops: value,*_ = grads(MMD['cw-MMD'], z1, y1, z2, y2, 5., k=k)
    return value,ops.n,ops.largest

def test_many_classes_cost_mmd_nothing():
    y = torch.arange(16)%8
    few,*n = mmd_cost(y, y, 10)
    many,*rest = mmd_cost(y, y, 21_000)
    same(many*2100, few)
    assert rest == n and n[1] <= 32*32
    assert mmd_cost(y*0, y*0, 10)[1:] == tuple(n)             # as many operations for one class as for eight: there is no loop

def test_mmd_of_a_hundred_classes_is_as_fast_as_of_ten():
    def median(k):
        z1,_,z2,_ = batches(256, 256, 64, dtype=torch.float32)
        y,times = torch.arange(256)%k,[]
        for _ in range(7):
            t = time.perf_counter(); grads(MMD['cw-MMD'], z1, y, z2, y, k=k); times.append(time.perf_counter()-t)
        return sorted(times)[3]
    for _ in range(5):
        if (ratio := median(100)/median(10)) <= 1.5: return
    assert False, ratio

@pytest.mark.parametrize('n', [2,3,4,5,6,7,12,33,64])
def test_median_bandwidth(n):
    for seed in range(3):
        z = features(n, 3, seed=seed)
        d = torch.cdist(z, z)**2
        i,j = torch.triu_indices(n, n, 1)
        same(median_bandwidth(pairwise_sqdist(z)), torch.median(d[i,j]))
        assert median_bandwidth(sym := (d + d.T)/2) == sym[i,j].median()                                # an entry, not near one
    assert not median_bandwidth(pairwise_sqdist(z.requires_grad_())).requires_grad

@pytest.mark.parametrize('shapes', [((9,4),(5,4)), ((1,3),(1,3)), ((4,2,3,3),(7,2,3,3)), ((6,),(3,))], ids=str)
def test_pairwise_sqdist(shapes):
    a,b = features(*shapes[0]),features(*shapes[1], seed=1)
    want = torch.cdist(a.reshape(len(a), -1), b.reshape(len(b), -1))**2
    same(pairwise_sqdist(a, b), want)
    same(pairwise_sqdist(a), torch.cdist(a.reshape(len(a), -1), a.reshape(len(a), -1))**2)
    far = pairwise_sqdist((a+1e4).float(), (b+1e4).float())   # the features are rounded there, which is not the function's doing
    exact = torch.cdist((a+1e4).float().double().reshape(len(a), -1), (b+1e4).float().double().reshape(len(b), -1))**2
    assert far.dtype == torch.float32 and (far >= 0).all()
    torch.testing.assert_close(far.double(), exact, rtol=1e-4, atol=1e-4)
    assert torch.autograd.gradcheck(pairwise_sqdist, (a.requires_grad_(), b.requires_grad_()))

# Numbers at the edge: degenerate batches, scales, NaN. References in float64, from differences, share no code with the package

TINY = {torch.float32: 1e-44, torch.float64: 0.}          # what the smallest numbers of a dtype cannot tell
def odd_batch(kind, n, i, scale=1., dtype=torch.float64):
    g = torch.Generator().manual_seed(n+i)
    z = torch.randn(n, i, generator=g, dtype=torch.float64)
    z[n//2:] *= 1.5
    if kind == 'equal':      z = (z[:1]/3).repeat(n, 1)
    if kind == 'most equal': z[3:] = z[:1]/3
    if kind == 'near equal': z[3:] = z[:1]/3 + 1e-5*z[3:]
    if kind == 'duplicates': z = z[torch.arange(n)//2]
    if kind == 'a constant': z[:,0] = 1/3
    if kind == 'an outlier': z[2] = 1e6
    if kind == 'far outlier':z[2] = 1e10
    if kind == 'far from 0': z += 1e3
    if kind == 'tight':      z *= 1e-2; z[:3] += 1e3
    return (z*scale).to(dtype)
ODD = ['plain','equal','most equal','near equal','duplicates','a constant','an outlier','far outlier','far from 0','tight']
odd    = pytest.mark.parametrize('kind', ODD)
floats = pytest.mark.parametrize('dtype', [torch.float32,torch.float64])

@every
@odd
@floats
@pytest.mark.parametrize('shape', [(12,3), (6,9), (20,2)], ids=str)
def test_penalties_of_odd_batches_at_every_scale(name, kind, dtype, shape):
    y,fi = torch.arange(shape[0])%3,torch.finfo(dtype)
    for scale in (1e-20,1e-15,1e-11,1e-8,1e-4,1.,1e4,1e9,1e10,1e15,1e19,1e20):
        z = odd_batch(kind, *shape, scale, dtype)
        rows = z.double() if name == 'L1' else z.double() - z[0].double()   # Ω does not change, and equal rows are 0 for the loops too
        want,want_grad = slow(name, rows.tolist(), y.tolist()),tensor(slow_grad(name, rows.tolist(), y.tolist()), dtype=torch.float64)
        value,grad = value_and_grad(FAST[name], z, y)
        tol = dict(rel_tol=3e-5 if dtype == torch.float32 else 1e-9, abs_tol=TINY[dtype] + 1e-24*scale**(dict(VR=2, CR=4).get(name[-2:], 1)))
        if kind == 'equal' and name != 'L1': assert value == 0 and (grad == 0).all()
        if want < .9*fi.max and not (name.endswith('CR') and kind == 'a constant' and want == 0 and scale > 1e18):
            assert math.isclose(value, want, **tol), (scale, value, want)
        elif want > fi.max: assert not value.isfinite(), (scale, value, want)
        if (top := want_grad.abs().max()) < .1*fi.max and grad.isfinite().all():
            assert (grad.double() - want_grad).abs().max() <= 1e-4*top + 100*TINY[dtype], (scale, top)
        elif top < .1*fi.max: assert not value.isfinite()

@every
@pytest.mark.parametrize('dtype', [torch.float16,torch.bfloat16])
def test_penalties_of_small_half_precision(name, dtype):
    for scale in (1e-7,1e-4,1.):
        z,y = odd_batch('plain', 12, 3, scale, dtype),torch.arange(12)%3
        value,grad = value_and_grad(FAST[name], z, y)
        assert math.isclose(value, slow(name, z.tolist(), y.tolist()), rel_tol=1e-5) and grad.isfinite().all()

@classwise
@floats
@pytest.mark.parametrize('shape', [(12,3), (12,9)], ids=str)
def test_equal_rows_of_a_class_have_no_part(name, dtype, shape):
    "Rounding the mean of equal numbers leaves no rest, whatever the other classes are like"
    z,y = features(*shape).to(dtype),torch.arange(shape[0])%4
    z[y == 1] = z[1]*1e5/3
    _,grad = value_and_grad(FAST[name], z, y)
    assert (grad[y == 1] == 0).all() and (grad[y == 0] != 0).any()
    only = torch.where((y == 1)[:,None], z, z[y.clamp(max=1)])   # every class is constant
    value,grad = value_and_grad(FAST[name], only[y < 2], y[y < 2])
    assert value == 0 and (grad == 0).all()

def kernel_mmd(z, n1, y, s, squared, floor):
    "From differences, class after class"
    (a,b),(c1,c2) = (z[:n1],z[n1:]),(y[:n1],y[n1:])
    total = z.sum()*0
    for k in range(K) if len(y) else [None]:
        p,q = (a,b) if k is None else (a[c1 == k],b[c2 == k])
        if not len(p) or not len(q): continue
        mean_k = lambda u, v: torch.exp(-((u[:,None] - v).square()/s).sum(-1)).mean()
        v = mean_k(p, p) + mean_k(q, q) - 2*mean_k(p, q)
        total = total + (v if squared else v.sqrt() if v > floor else 0*v)
    return total/(K if len(y) else 1)

def odd_sigma(rows):
    "The lower median; where it is a million times smaller than the 90% quantile, that of the pairs that are not"
    d = sorted(sqd(rows[i], rows[j]) for i in range(len(rows)) for j in range(i))
    if d[(len(d)-1)//2] <= (near := 1e-6*d[len(d)*9//10]): d = [x for x in d if x > near] or [1.]
    return d[(len(d)-1)//2]

@both
@rooted
@odd
@floats
@pytest.mark.parametrize('shape', [(12,3), (14,40)], ids=str)
def test_mmd_of_odd_batches_at_every_scale(name, squared, kind, dtype, shape):
    "With the median, and with a σ that suits most rows, is small or is large"
    n,y,floor = shape[0]//2,torch.arange(shape[0])%3,8*torch.finfo(dtype).eps
    rel,least = (3e-5,2e-7 if squared else 2e-4) if dtype == torch.float32 else (1e-9,1e-8)
    for scale in (1e-20,1e-18,1e-9,1.,1e9,1e18,1e20):
        z = odd_batch(kind, *shape, scale, dtype)
        for s in (None, .01*scale**2, scale**2, 100*scale**2):
            x = z.double().clone().requires_grad_()
            want = kernel_mmd(x, n, y if name == 'cw-MMD' else y[:0], odd_sigma(x.tolist()) if s is None else s, squared, floor)
            want_grad, = torch.autograd.grad(want, x)
            value,*g = grads(MMD[name], z[:n], y[:n], z[n:], y[n:], s, squared)
            g,top = torch.cat(g).double(),want_grad.abs().max()
            assert abs(value - want) <= rel*want + least, (scale, s, value, want)
            assert (g - want_grad).abs().max() <= 1e-3*top + (2e-6/scale if top*scale < 1e-3 else 0), (scale, s, top)

@both
@rooted
def test_mmd_does_not_change_with_the_scale(name, squared):
    z1,y1,z2,y2 = batches(20, 16, 7, dtype=torch.float32)
    value,*g = grads(MMD[name], z1, y1, z2, y2, None, squared)
    for e in range(-60, 61, 4):                           # to 1e18; by powers of two, so that nothing is rounded
        got,*h = grads(MMD[name], z1*2.**e, y1, z2*2.**e, y2, None, squared)
        torch.testing.assert_close(got, value, rtol=1e-5, atol=0)
        for a,b in zip(h, g): torch.testing.assert_close(a*2.**e, b, rtol=1e-4, atol=1e-6*b.abs().max().item())

@both
@pytest.mark.parametrize('dtype', [torch.float16,torch.bfloat16])
def test_mmd_of_small_half_precision(name, dtype):
    "In float16 features near 1e-7 are one of a handful of numbers"
    for scale in (1e-7,1e-5,1.):
        b = odd_batch('plain', 64, 32, scale, dtype),torch.arange(64)%3
        value,*g = grads(MMD[name], b[0][:32], b[1][:32], b[0][32:], b[1][32:])
        up,*up_grads = grads(MMD[name], b[0][:32].float(), b[1][:32], b[0][32:].float(), b[1][32:])
        assert value == up and value.isfinite() and all(torch.equal(a, c.to(dtype)) and a.isfinite().all() for a,c in zip(g, up_grads))

def test_bandwidth_of_zero_or_less():
    z1,y1,z2,y2 = batches(9, 8, 3)
    for s in (0,0.,tensor(0.),lambda d: 0*d.mean()): assert torch.equal(mmd(z1, z2, s), mmd(z1, z2))
    with pytest.raises(ValueError, match='`sigma` must be above 0, not -1'): mmd(z1, z2, -1)
    assert mmd(z1, z2, lambda d: -d.mean()).isnan()
    same(mmd(z1, z2, 1e-60), tensor((1/9 + 1/8)**.5, dtype=torch.float64))      # nothing is like anything else

@pytest.mark.parametrize('name', [*FAST,*MMD])
@pytest.mark.parametrize('bad', [math.nan,math.inf])
@pytest.mark.parametrize('shape', [(12,3), (6,9), (40,2), (6,1)], ids=str)
def test_nan_stays_nan(name, bad, shape):
    "In the value and in the gradient; nothing hides it. Of a penalty of infinite features both are infinite or NaN"
    z,y = features(*shape, dtype=torch.float32),torch.arange(shape[0])%3
    z[1,-1] = bad
    if name in FAST: value,*g = value_and_grad(FAST[name], z, y)
    else: value,*g = grads(MMD[name], z[:3], y[:3], z[3:], y[3:])
    assert not value.isfinite() and (value.isnan() or bad == math.inf) and any(t.isnan().any() for t in g)

@both
@pytest.mark.parametrize('jitter', [0.,1e-6])
def test_a_network_trains_on_repeated_rows(name, jitter):
    "Plain SGD, which hides no gradient: a table of which 85 rows in 100 are the same"
    torch.manual_seed(0)
    net,x = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU()),torch.randn(256, 8)
    x[torch.rand(256) < .85] = x[0].clone()
    x,y = x + jitter*torch.randn_like(x),torch.randint(0, 3, (256,))
    opt,values = torch.optim.SGD(net.parameters(), 2.),[]
    for _ in range(30):
        z = net(x)
        z.retain_grad()
        value = MMD[name](z[::2], y[::2], z[1::2], y[1::2], k=3)
        opt.zero_grad(); value.backward(); opt.step()
        assert 1e-5 < z.grad.abs().max() < .1, z.grad.abs().max()
        values.append(value.item())
    assert values[-1] < .9*values[0] and all(p.isfinite().all() for p in net.parameters())

@pytest.mark.parametrize('kind', [*ODD,'one differs'])
def test_the_bandwidth_of_odd_batches(kind):
    "On the CPU and, by sorting, elsewhere; one outlier does not move it, and it is not 0 unless all rows are equal"
    for n in (4,12,33):
        z = torch.zeros(n, 3, dtype=torch.float64) if kind == 'one differs' else odd_batch(kind, n, 3)
        if kind == 'one differs': z[0] = 2
        d = pairwise_sqdist(z)
        got = median_bandwidth(d)
        if kind == 'equal': assert got == 0
        else: same(got, tensor(odd_sigma(z.tolist()), dtype=torch.float64))
        keep = torch.arange(n) < max(3, n-2)
        assert _sorted_median(d, None) == got and _sorted_median(d, keep) == median_bandwidth(d, keep) == median_bandwidth(d[keep][:,keep])

@floats
def test_distances_in_tight_clusters_far_apart(dtype):
    for far,near in ((1e3,1e-2),(1e6,1.),(1e6,1e-12),(1e18,1e16),(1e-18,1e-20)):
        z = torch.cat([torch.full((5,6), far), torch.zeros(5, 6)]).double() + near*features(10, 6)
        z = torch.cat([z,z[:2]]).to(dtype)
        want = (z[:,None].double() - z.double()).square().sum(-1)
        for got,exact in ((pairwise_sqdist(z), want), (pairwise_distance(z), want.sqrt()), (pairwise_distance(z, z[:3]), want.sqrt()[:,:3])):
            torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=TINY[dtype])
            assert (got[exact == 0] == 0).all()

# Phantom embeddings: clusters of a batch

Y = tensor([3,0,3,5,0,3,3,1,0,3])   # classes of 5, 3, 1 and 1

@pytest.mark.parametrize('k', range(1, 8))
def test_batch_clusters(k):
    for seed in range(20):
        c = batch_clusters(Y, torch.randperm(10, generator=torch.Generator().manual_seed(seed)), k)
        assert c.shape == (10,k) and c.dtype == torch.long and c[:,0].tolist() == list(range(10))   # the row's own first
        for row in c.tolist():
            mine = {i for i in range(10) if Y[i] == Y[row[0]]}
            assert set(row) <= mine and len(set(row)) == min(k, len(mine))                          # none twice while there are more
            assert row == (row[:len(mine)]*k)[:k]                                                   # then round again

@pytest.mark.parametrize('relabel', [lambda y: -y, lambda y: y+10**12, lambda y: y.to(torch.uint8), lambda y: y.int()])
def test_batch_clusters_of_any_labels(relabel):
    c = batch_clusters(relabel(Y), torch.randperm(10), 3)
    assert (Y[c] == Y[:,None]).all()

def test_partners_are_drawn_evenly():
    "Over permutations every other sample of the class is as often the partner, at each place of the cluster"
    from scipy.stats import chisquare
    g,count = torch.Generator().manual_seed(0),torch.zeros(4, 10, 10)
    for _ in range(3000):
        c = batch_clusters(Y, torch.randperm(10, generator=g), 4)
        for t in range(1, 4): count[t,torch.arange(10),c[:,t]] += 1
    for t in range(1, 4):
        for i in range(10):
            others = [j for j in range(10) if Y[j] == Y[i] and j != i]
            if len(others) > t-1: assert count[t,i,others].sum() == 3000 and chisquare(count[t,i,others].numpy()).pvalue > 1e-4

def test_features_by_keyword():
    "Statistics take their features by name as well, in half precision and of any shape"
    z1,z2 = torch.randn(6, 2, 3), torch.randn(5, 2, 3)
    assert torch.equal(mmd(z1=z1.half(), z2=z2.half()), mmd(z1.half(), z2.half())) and mmd(z1=z1, z2=z2).dtype == torch.float32
    assert torch.equal(variance_penalty(z=z1), variance_penalty(z1)) and torch.equal(pairwise_sqdist(a=z1, b=z2), pairwise_sqdist(z1, z2))
    assert variance_penalty(torch.arange(4)) == 1.25         # integers are features too
