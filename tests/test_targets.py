"What targets are, for every callback and loader: labels that the loss ignores, numbers that are no classes, classes of every type, weights of samples."
import pytest
from common import *
from latentreg_fastai.targets import *
from fastai.callback.data import WeightedDL,PartialDL
from fastai.text.all import TextBlock,BaseTokenizer
from fastai.tabular.all import TabularPandas,Categorify,tabular_learner
from latentreg_fastai.data.groups import *

CLASSWISE = {'cw-VR': partial(VarianceRegularizer, 1.), 'cw-CR': partial(CovarianceRegularizer, 1.), 'CenterLoss': partial(CenterLoss, 1.),
             **{f'ITRA {s}': partial(ITRA, 1., source=s, warmup=0.) for s in ('dataset','split','queue')},
             'ITRA separate': partial(ITRA, 1., separate=True, warmup=0.), 'ITRA matched': partial(ITRA, 1., matched=True, warmup=0.)}
NEED_CLASSES = {**CLASSWISE, 'Phantom': PhantomEmbedding, 'Phantom batch': partial(PhantomEmbedding, source='batch'), 'DisturbLabel': partial(DisturbLabel, .5)}

# What the loss and the data say

class Mine(nn.Module):
    def __init__(self, *losses): super().__init__(); self.parts = nn.ModuleList(losses)
    def forward(self, p, y): return sum(l(p, y) for l in self.parts)
class Holder(nn.Module):
    def __init__(self, loss): super().__init__(); self.loss = loss
    def forward(self, p, y): return self.loss(p, y)
class Own(nn.MSELoss): pass

SAYS = {True: [CrossEntropyLossFlat(), nn.NLLLoss(), F.cross_entropy, partial(F.cross_entropy, weight=torch.ones(3)), FocalLossFlat(), LabelSmoothingCrossEntropyFlat(), DiceLoss(), Mine(nn.CrossEntropyLoss()), Holder(CrossEntropyLossFlat()), partial(partial(F.nll_loss))],
        False: [MSELossFlat(), L1LossFlat(), nn.SmoothL1Loss(), nn.HuberLoss(), F.mse_loss, partial(F.l1_loss, reduction='sum'), Own(), Mine(nn.MSELoss(), nn.L1Loss()), Holder(MSELossFlat()), BaseLoss(Own)],
        None: [BCEWithLogitsLossFlat(), lambda p,y: p.mean(), Mine(nn.MSELoss(), nn.CrossEntropyLoss()), None]}
@pytest.mark.parametrize('want', SAYS)
def test_what_a_loss_says(want):
    ints = list(zip(torch.randn(8,2), range(8)))
    for l in SAYS[want]: assert are_classes(DataLoaders.from_dsets(ints, ints, bs=4), l) is want, l

@pytest.mark.parametrize('loss,want', [(nn.CrossEntropyLoss(ignore_index=3), 3), (CrossEntropyLossFlat(ignore_index=0), 0), (partial(F.nll_loss, ignore_index=np.int64(5)), 5), (Mine(CrossEntropyLossFlat(ignore_index=7).func), 7), (Holder(CrossEntropyLossFlat(ignore_index=255)), 255),
                                       (F.cross_entropy, -100), (FocalLossFlat(), -100), (lambda p,y: p.mean(), -100), (MSELossFlat(), -100)])
def test_ignored_label(loss, want): assert ignored_label(loss) == want

def test_beside_fastais_mixup_the_loss_is_the_users():
    mix = MixUp(); mix.old_lf = CrossEntropyLossFlat(ignore_index=9)
    assert ignored_label(mix.lf) == 9 and are_classes(DataLoaders.from_dsets([(0,1)]*4, [(0,1)]*4, bs=2), mix.lf)

def dls_of(kind, n=24):
    x,ages = torch.randn(n, 4),[(7*i)%5 for i in range(n)]
    block = lambda b: DataBlock((TransformBlock,b), get_x=lambda i: x[i], get_y=lambda i: ages[i], splitter=IndexSplitter(range(8))).dataloaders(range(n), bs=8, num_workers=0, device='cpu')
    table = lambda b: TabularPandas(pd.DataFrame(dict(a=x[:,0].numpy(), y=ages)), [Normalize], [], ['a'], y_names='y', y_block=b, splits=(list(range(16)),list(range(16,24)))).dataloaders(bs=8, device='cpu')
    ds = list(zip(x, ages))
    return {'regression block': lambda: block(RegressionBlock), 'category block': lambda: block(CategoryBlock), 'table, regression': lambda: table(None), 'table, categories': lambda: table(CategoryBlock()),
            'tensors': lambda: tensor_dls((x,tensor(ages)), (x,tensor(ages)), bs=8, device='cpu'), 'tensors, named': lambda: tensor_dls((x,tensor(ages)), (x,tensor(ages)), vocab=list('abcde'), bs=8, device='cpu'),
            'items': lambda: DataLoaders.from_dsets(ds, ds, bs=8, num_workers=0), 'subset': lambda: DataLoaders.from_dsets(*[torch.utils.data.Subset(block(CategoryBlock).train_ds, range(16))]*2, bs=8, num_workers=0)}[kind]()
SAID = {'regression block': (False,False,True), 'category block': (True,True,True), 'table, regression': (False,False,True), 'table, categories': (True,True,True), 'tensors': (True,False,True), 'tensors, named': (True,True,True), 'items': (None,False,True), 'subset': (True,True,True)}
@pytest.mark.parametrize('kind', SAID)
def test_what_data_say(kind):
    dls = dls_of(kind)
    assert tuple(are_classes(dls, l) for l in (None, MSELossFlat(), CrossEntropyLossFlat())) == SAID[kind]
    assert n_classes_of(dls) == (None if kind in ('regression block','table, regression','items') else 5)
    dls.vocab = list('abcde')
    assert are_classes(dls, MSELossFlat()) and n_classes_of(dls) == 5
    dls.c = np.int64(7)
    assert n_classes_of(dls) == 7 and type(n_classes_of(dls)) is int

def test_a_text_has_its_own_vocabulary():
    df = pd.DataFrame(dict(text=['red '*(i%7+1) for i in range(24)], n=[i%5 for i in range(24)], k=list('abc')*8))
    make = lambda block,y: DataBlock((TextBlock.from_df('text', tok=BaseTokenizer()), block), get_x=ColReader('text'), get_y=ColReader(y), splitter=IndexSplitter(range(8))).dataloaders(df, bs=4, num_workers=0, device='cpu')
    assert not are_classes(make(RegressionBlock, 'n')) and n_classes_of(make(RegressionBlock, 'n')) is None and n_classes_of(make(CategoryBlock, 'k')) == 3
    two = DataBlock((TransformBlock,CategoryBlock,RegressionBlock), n_inp=1, getters=[lambda i: torch.randn(3), lambda i: 'abc'[i%3], lambda i: i]).dataloaders(range(24), bs=4, num_workers=0)
    assert [are_classes(two, i=i) for i in (0,1)] == [True,False] and [n_classes_of(two, i) for i in (0,1)] == [3,None]

# Numbers that are no classes

class Tab(nn.Module):
    def __init__(self, n_out=1): super().__init__(); self.l = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, n_out))
    def forward(self, *xs): return self.l(torch.cat([x.float() for x in xs], 1))

def number_learner(kind, loss, n_out=1):
    dls,model = dls_of(kind),Tab(n_out)
    model(*dls.one_batch()[:-1])
    return new_learner(dls=dls, model=model, loss_func=loss, metrics=[])

NUMBERS = [('regression block', lambda p,y: F.mse_loss(p[:,0], y)), ('table, regression', MSELossFlat()), ('tensors', MSELossFlat()), ('tensors', Holder(nn.L1Loss())), ('items', partial(F.mse_loss)), ('items', BaseLoss(nn.HuberLoss, floatify=True, is_2d=False))]
@pytest.mark.parametrize('kind,loss', NUMBERS, ids=plain)
@pytest.mark.parametrize('name', NEED_CLASSES)
def test_numbers_are_no_classes(name, kind, loss):
    learn = number_learner(kind, loss)
    refused([type(NEED_CLASSES[name]()).__name__, 'one integer'], learn, NEED_CLASSES[name](), (TypeError,ValueError) if 'block' in kind else TypeError)
    if kind == 'tensors' and isinstance(loss, BaseLoss):
        learn.dls.vocab = list('abcde')                                                                        # as the message says
        if 'ITRA' not in name and 'cw' not in name: learn.fit(1, 1e-3, cbs=NEED_CLASSES[name]())
        if hasattr(NEED_CLASSES[name](), 'classwise') and name != 'CenterLoss': number_learner(kind, loss).fit(1, 1e-3, cbs=NEED_CLASSES[name](classwise=False))

@pytest.mark.parametrize('name', NEED_CLASSES)
def test_switched_off_nothing_is_asked(name):
    off = {'Phantom': dict(k=1), 'Phantom batch': dict(k=1), 'DisturbLabel': dict(p=0.)}.get(name, dict(weight=0.))
    cb = {'Phantom': PhantomEmbedding, 'Phantom batch': PhantomEmbedding, 'DisturbLabel': DisturbLabel}.get(name) or NEED_CLASSES[name].func
    number_learner('tensors', MSELossFlat()).fit(1, 1e-3, cbs=cb(**off))

def test_one_number_a_sample_tells_no_three_classes():
    "Nothing says what integers are but the model, which gives one number"
    for n_out in (1,3):
        learn = number_learner('items', lambda p,y: F.mse_loss(p[:,0], y.float()), n_out)
        refused(['DisturbLabel', '5 classes', f'{n_out} number'], learn, DisturbLabel(.5))
    number_learner('items', lambda p,y: F.mse_loss(p[:,0], y.float()), 5).fit(1, 1e-3, cbs=DisturbLabel(.5))

@pytest.mark.parametrize('name', [n for n in CLASSWISE if n not in ('cw-CR',)])
def test_predictions_of_one_number(name):
    "(N,) and (N,1): the number of classes is to be given"
    for shape in (lambda p: p[:,0], lambda p: p):
        class Net(Tab):
            def forward(self, x): return shape(super().forward(x))
        net = Net(); net(torch.randn(2,4))
        x,y = torch.randn(24,4),torch.arange(24)%2
        make = lambda: new_learner(model=deepcopy(net), dls=items_dls(list(zip(x, y))), loss_func=lambda p,y: F.binary_cross_entropy_with_logits(p.view(-1), y.float()), metrics=[])
        refused([type(CLASSWISE[name]()).__name__, 'number of classes', 'give `n_classes`'], make(), CLASSWISE[name]())
        make().fit(1, 1e-3, cbs=CLASSWISE[name](n_classes=2))

# Labels that the loss ignores

def loop_variance(z, y, K): return sum(z[y == k].var(0, unbiased=False).mean() for k in range(K) if (y == k).any())/K
def loop_covariance(z, y, K):
    total = 0.
    for k in range(K):
        d = z[y == k] - z[y == k].mean(0)
        for i in range(z.shape[1]):
            for j in range(i):
                if len(d): total += (d[:,i]*d[:,j]).mean()**2
    return total*2/(K*z.shape[1]*(z.shape[1]-1))
def loop_mmd(z1, y1, z2, y2, K):
    z = torch.cat([z1[y1 >= 0], z2[y2 >= 0]])
    pairs = sorted((z[i]-z[j]).square().sum() for i in range(len(z)) for j in range(i))
    if not pairs: return z1.sum()*0
    sigma = pairs[(len(pairs)-1)//2]
    kernel = lambda a,b: torch.stack([(-(p-q).square().sum()/sigma).exp() for p in a for q in b]).mean()
    both = [(z1[y1 == k],z2[y2 == k]) for k in range(K) if (y1 == k).any() and (y2 == k).any()]
    return sum((kernel(a, a) + kernel(b, b) - 2*kernel(a, b)).clamp_min(0).sqrt() for a,b in both)/K if both else z1.sum()*0

def skipping(ignored, n=48):
    x,y = data(n)
    y[torch.rand(n, generator=torch.Generator().manual_seed(1)) < .3] = ignored
    y[:3] = ignored
    return x,y
def skip_learner(ignored, loss=None, bs=8):
    x,y = skipping(ignored)
    return new_learner(model=tanh_net(), dls=tensor_dls((x,y), (x,y), vocab=CLASSES_3, bs=bs, device='cpu'), loss_func=loss or CrossEntropyLossFlat(ignore_index=ignored), metrics=[])
CLASSES_3 = ['a','b','c']

@pytest.mark.parametrize('ignored', [-100, 255, -1])
@pytest.mark.parametrize('name', CLASSWISE)
def test_class_wise_terms_leave_ignored_labels_out(name, ignored):
    learn,cb,zs,seen,queue,centers = skip_learner(ignored),CLASSWISE[name](),[],[],[],torch.zeros(3, 8).double()
    learn.model[3].register_forward_pre_hook(lambda m,a: zs.append(a[0].detach().double()) if learn.training else None)
    def check(l):
        nonlocal centers
        z,y = torch.cat(zs),l.y.clone()
        y[y == ignored] = -1
        zs.clear()
        if name == 'cw-VR': want = loop_variance(z, y, 3)
        elif name == 'cw-CR': want = loop_covariance(z, y, 3)
        elif name == 'CenterLoss':
            own = [(a,int(k)) for a,k in zip(z, y) if k >= 0]
            want = sum((a-centers[k]).square().sum() for a,k in own)/max(1, len(own))/2 + 0*z.sum()
            new = centers.clone()
            for k in range(3):
                mine = [a for a,j in own if j == k]
                if mine: new[k] -= .5*sum(centers[k]-a for a in mine)/(1+len(mine))
            centers = new
        elif name == 'ITRA split': want = loop_mmd(z[:4], y[:4], z[4:], y[4:], 3)
        elif name == 'ITRA queue':
            want = loop_mmd(z, y, *map(torch.cat, zip(*queue)), 3) if queue else z.sum()*0
            queue.append((z,y)); del queue[:-4]
        else:
            other = cb.rows.targets[0].clone(); other[other == ignored] = -1
            want = loop_mmd(z[:8], y, z[8:], other, 3)
        seen.append(((l.loss_grad-l.loss).item(), want.item()))
    clear = Probe(order=30, run_valid=False, before_batch=lambda l: zs.clear())                     # a callback may have looked at its place
    learn.fit(2, 1e-2, cbs=[cb, clear, Probe(order=5, run_valid=False, after_loss=check)])
    assert len(seen) == 12 and sum(w > 0 for _,w in seen) > 8
    for got,want in seen: assert abs(got-want) < 5e-4*max(1e-2, want), (got, want)
    assert all(v.isfinite().all() for v in weights(learn).values())

def test_bandwidth_of_samples_that_have_a_class():
    "As if the others were not there"
    z,y = torch.randn(14,5),tensor([0,1,-7,2,0,-6,1, 1,-5,0,2,-4,0,1])
    z[y < 0] *= 40
    own,n = y >= 0,(y[:7] >= 0).sum()
    torch.testing.assert_close(median_bandwidth(pairwise_sqdist(z), own), median_bandwidth(pairwise_sqdist(z[own])))
    for sq in (False,True): torch.testing.assert_close(classwise_mmd(z[:7], y[:7], z[7:], y[7:], 3, squared=sq), classwise_mmd(z[own][:n], y[own][:n], z[own][n:], y[own][n:], 3, squared=sq), rtol=1e-4, atol=1e-6)
    assert classwise_mmd(z[:7], -1-torch.arange(7), z[7:], -8-torch.arange(7), 3) == 0

@pytest.mark.parametrize('name', CLASSWISE)
def test_a_batch_without_labels_adds_nothing(name):
    "Only ignored labels: the term is 0 and so is its gradient"
    x,y = data()
    loss = lambda p,y,reduction='mean': 0*p.mean()
    learn = new_learner(model=tanh_net(), dls=tensor_dls((x,torch.full_like(y, -100)), (x,y), vocab=CLASSES_3, bs=8, device='cpu'), loss_func=loss, metrics=[])
    before = weights(learn)
    learn.fit(1, 1e-1, wd=0, cbs=CLASSWISE[name]())
    assert same(before, weights(learn)) and all(v == 0 for v in next(iter(learn.recorder.terms.values())))

def test_labels_out_of_range_are_still_told():
    "-1 is no label, unless the loss ignores it"
    x,y = data(); y[3] = -1
    make = lambda i: new_learner(model=tanh_net(), dls=tensor_dls((x,y), (x,y), vocab=CLASSES_3, bs=8, device='cpu'), loss_func=lambda p,y: F.cross_entropy(p, y.clamp_min(0)) if i is None else F.cross_entropy(p, y, ignore_index=i), metrics=[])
    for name in CLASSWISE:
        if 'matched' not in name: refused(['labels run from -1 to 2'], make(None), CLASSWISE[name](), trained=True)
    refused(['DisturbLabel', 'labels run from -1 to 2'], make(None), DisturbLabel(.1), trained=True)

@pytest.mark.parametrize('ignored', [-100, 1])
def test_disturb_label_leaves_ignored_labels(ignored):
    "They stay, and no other label becomes one of them"
    x,y = data(240)
    y[::5] = ignored
    seen = []
    learn = new_learner(model=tanh_net(), dls=tensor_dls((x,y), (x,y), vocab=CLASSES_3, bs=24, device='cpu'), loss_func=CrossEntropyLossFlat(ignore_index=ignored), metrics=[])
    was = []
    learn.fit(8, 1e-3, cbs=[Probe(order=0, run_valid=False, before_batch=lambda l: was.append(l.y.clone())), DisturbLabel(.6), Probe(order=9, run_valid=False, before_batch=lambda l: seen.append(l.y.clone()))])
    was,seen = torch.cat(was),torch.cat(seen)
    assert torch.equal(was == ignored, seen == ignored)
    drawn = Counter(seen[was == 0].tolist())
    rest = 2 if ignored == 1 else 3                                        # classes that can be drawn
    n = (was == 0).sum().item()
    for k in {0,1,2} - {ignored}: assert abs(drawn[k]/n - ((.4 if k == 0 else 0) + .6/rest)) < .05

@pytest.mark.parametrize('source', ['dataset','batch'])
@pytest.mark.parametrize('ignored', [-100, 255])
def test_phantoms_of_ignored_labels_stand_alone(source, ignored):
    "No cluster holds a sample without a label, but its own"
    learn,cb,seen = skip_learner(ignored),PhantomEmbedding(3, source=source),[]
    emb = []
    learn.model[2].register_forward_hook(lambda m,a,o: emb.append(o.detach().clone()) if learn.training else None)
    learn.model[3].register_forward_hook(lambda m,a,o: emb.append(a[0].detach().clone()) if learn.training else None)
    def check(l):
        z,both = emb[-2:]                                   # the first batch is also traced
        n = len(l.y)
        assert torch.equal(both[:n], z[:n])
        for i in range(n):
            phantom = both[n+i]
            if l.y[i] == ignored: torch.testing.assert_close(phantom, z[i]); seen.append(0)
            elif source == 'batch':
                mine = [j for j in range(n) if l.y[j] == l.y[i]]
                ways = [z[[i,*o]].mean(0) for o in itertools.product(mine, repeat=2)]
                assert any(torch.allclose(phantom, w, atol=1e-6) for w in ways); seen.append(1)
            else:
                assert (cb.rows.targets[0].view(n, 2)[i] == l.y[i]).all(); seen.append(1)
        emb.clear()
    learn.fit(1, 1e-3, cbs=[cb, Probe(order=5, run_valid=False, after_loss=check)])
    assert seen.count(0) > 8 and seen.count(1) > 20

def test_loaders_leave_ignored_labels_out():
    y = [0,0,1,-100,1,-100,0,1,-100,-100]
    dl = MicroClusterDL(list(zip(range(10), y)), 3, bs=5, shuffle=True, num_workers=0)
    for _ in range(5):
        for x,ys in dl:
            for c,l in zip(x.view(-1, 3).tolist(), ys.view(-1, 3).tolist()): assert len(set(l)) == 1 and (l[0] >= 0 or len(set(c)) == 1)
    ys = torch.tensor(y)
    assert {y[i] for i in class_balanced(ys, 4, np.random.default_rng(0)).tolist()} == {0,1}
    assert {(y[i]) for i in class_balanced(ys, 4, np.random.default_rng(0), ignore_index=0).tolist()} == {1,-100}
    raises(['no sample has a label'], lambda: class_balanced(torch.full((4,), -100), 2, np.random.default_rng(0)))
    few,rest = semisup_dls(tensor_dls((torch.arange(10.)[:,None], ys), (torch.arange(10.)[:,None], ys), bs=2, device='cpu'), 4)
    assert sorted(labels_of(few.train).tolist()) == [0,0,1,1] and Counter(labels_of(rest).tolist()) == {-100: 4, 0: 1, 1: 1}

# Classes of every type

@pytest.mark.parametrize('name', NEED_CLASSES)
def test_truth_values_are_two_classes(name):
    x,y,res = data()[0],torch.arange(24)%2,[]
    for d in (torch.int64,torch.bool):
        learn = new_learner(model=tanh_net(), dls=tensor_dls((x,y.to(d)), (x,y.to(d)), bs=8, device='cpu'), loss_func=lambda p,y: F.cross_entropy(p, y.long()), metrics=[])
        learn.fit(1, 1e-2, cbs=NEED_CLASSES[name]())
        res.append(weights(learn))
    assert same(*res)

def test_numpys_numbers_of_classes():
    for name,make in {**NEED_CLASSES, 'LatentMonitor': LatentMonitor}.items():
        learn = new_learner(dls=items_dls(list(zip(*data()))))
        learn.dls.c = np.int64(3)
        learn.fit(1, 1e-3, cbs=make())
        if not name.startswith('Phantom'):
            raises(['`n_classes` is 2', '3 classes'], lambda: learn.fit(1, cbs=make(n_classes=np.int64(2))))
            learn.fit(1, 1e-3, cbs=make(n_classes=np.int64(3)))
    cb = PhantomEmbedding(k=np.int64(2))
    assert type(cb.k) is int
    learn = new_learner(); mine = list(learn.cbs)
    learn.fit(1, 1e-3, cbs=[VarianceRegularizer(), cb, CovarianceRegularizer()])
    assert list(learn.cbs) == mine

def test_disturb_label_out_of_range():
    refused(['DisturbLabel', 'labels run from 0 to 2', '2 classes'], new_learner(dls=items_dls(list(zip(*data())))), DisturbLabel(.1, n_classes=2), trained=True)
    refused(['DisturbLabel', '10 classes', '3 numbers'], new_learner(), DisturbLabel(.1, n_classes=10))
    x,y = data()
    learn = new_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 200)), dls=items_dls(list(zip(x, y.to(torch.int8)))), loss_func=lambda p,y: F.cross_entropy(p, y.long()), metrics=[])
    seen = []
    learn.fit(8, 1e-3, cbs=[DisturbLabel(1., n_classes=200), Probe(order=9, run_valid=False, before_batch=lambda l: seen.append(l.y))])
    assert torch.cat(seen).min() >= 0 and torch.cat(seen).max() > 127           # more than int8 can hold

# Losses that data tell

def test_a_learner_without_a_loss():
    x,y = torch.randn(24,4),torch.arange(24)%3
    f = lambda *b,**kw: Learner(tensor_dls(b, b, device='cpu', bs=8, **kw), nn.Linear(4,3)).loss_func
    assert isinstance(f(x, y), CrossEntropyLossFlat) and isinstance(f(x, y[:,None]), CrossEntropyLossFlat) and f(x, torch.zeros(24,5,5).long()).axis == 1
    assert isinstance(f(x, F.one_hot(y).float(), vocab=list('abc')), BCEWithLogitsLossFlat)
    for t in (torch.randn(24), torch.randn(24,1), torch.randn(24,3), torch.rand(24,1,4,4)): assert isinstance(f(x, t).func, nn.MSELoss)
    for t in (F.one_hot(y), F.one_hot(y).float()): raises(['Could not infer loss function'], lambda: f(x, t), AssertionError)
    learn = Learner(digits_dls(50, 50, bs=10, device='cpu'), nn.Sequential(nn.Flatten(), nn.Linear(64,10)))
    quietly(learn, lambda: learn.fit(1)); assert isinstance(learn.loss_func, CrossEntropyLossFlat)
    learn = Learner(rotation_dls(n_train=50, n_valid=50, bs=10, device='cpu'), nn.Linear(3,2))
    quietly(learn, lambda: learn.fit(1))

def test_arrays_of_numpy():
    x,y = np.random.default_rng(0).normal(size=(24,4)),np.arange(24)%3
    dls = tensor_dls((x,y), (x.astype('float32'),y.tolist()), bs=8, device='cpu')
    assert dls.c == 3 and dls.one_batch()[0].dtype == torch.float32 and dls.one_batch()[1].dtype == torch.int64
    torch.testing.assert_close(dls.train_ds.tensors[0], torch.tensor(x).float())
    learn = Learner(dls, nn.Linear(4,3)); quietly(learn, lambda: learn.fit(1, cbs=ManifoldMixup()))
    raises(['TensorItems', 'arrays of numbers'], lambda: tensor_dls((x,np.array(['a','b']*12)), (x,y)), TypeError)

# Sampling weights

def count_pairs(dl, n, epochs, k):
    got = np.zeros((k-1, n, n))
    for _ in range(epochs):
        g = np.array(dl.get_idxs()); dl.randomize()
        for t in range(k-1): np.add.at(got[t], (g[:,0],g[:,1+t]), 1)
    return got

@pytest.mark.parametrize('k', [2,3])
def test_partners_follow_the_weights(k):
    "First and second partner of each sample, against their chances worked out by hand"
    y,w = np.array([0]*5+[1]*4+[2]*3),np.array([1.,2,0,4,1, 3,0,0,1, 5,1,1])
    np.random.seed(0)
    got = count_pairs(MicroClusterDL(loader_of(list(zip(range(12), y.tolist())), cls=WeightedDL, wgts=w), k), 12, 6000, k)
    for i in range(12):
        if w[i] == 0: assert got[:,i].sum() == 0; continue
        mine = [j for j in range(12) if y[j] == y[i] and w[j] > 0 and j != i]
        first = {j: w[j]/w[mine].sum() for j in mine}
        second = {j: sum(first[a]*w[j]/(w[mine].sum()-w[a]) for a in mine if a != j) for j in mine} if len(mine) > 1 else first
        for t,want in enumerate((first,second)[:k-1]):
            n = got[t,i].sum()
            assert n > 500 and got[t,i].sum() == sum(got[t,i,j] for j in mine)                             # nobody else
            for j in mine: assert abs(got[t,i,j]/n - want[j]) < 5*np.sqrt(want[j]*(1-want[j])/n) + 1e-9, (t, i, j)

def test_partners_of_loaders_with_a_way_of_their_own():
    y = [0,1]*10
    items = list(zip(range(20), y))
    for own in (dict(get_idxs=lambda: [3,1,2,9,7,8]), dict(shuffle_fn=lambda idxs: [3,1,2,9,7,8])):
        for e in epochs(MicroClusterDL(loader_of(items, bs=2, **own), 2)): assert {i for x,_ in e for i in x} <= {3,1,2,9,7,8}
    class Twice(TfmdDL):
        def get_idxs(self): return [0]*6 + [2]*2 + [4,1]
    got = count_pairs(MicroClusterDL(Twice(items, bs=2, num_workers=0), 2), 20, 3000, 2)[0]
    assert abs(got[4,0]/got[4].sum() - .75) < .04 and abs(got[4,2]/got[4].sum() - .25) < .04 and got[1,1] == 3000 and got[0,0] == 0
    whole = count_pairs(MicroClusterDL(loader_of(items, cls=PartialDL, partial_n=6), 2), 20, 200, 2)[0]      # all can be partners
    assert (whole.sum(0) > 0).all()
    few = count_pairs(MicroClusterDL(loader_of(items, n=8), 2), 20, 50, 2)[0]
    assert few[:,8:].sum() == 0 and (few.sum(0)[:8] > 0).all()

def test_second_batches_and_splits_follow_the_weights():
    y,w = torch.arange(20)%2,np.where(np.arange(20) < 6, 0., 1.)
    items = list(zip(torch.arange(20.), y))
    for dl in (PairedDL(loader_of(items, cls=WeightedDL, wgts=w)), PairedDL(loader_of(items, cls=WeightedDL, wgts=w), matched=True)):
        for e in epochs(dl): assert min(i for x,_ in e for i in x) >= 6
    assert min(i for b in itertools.islice(Endless(loader_of(items, cls=WeightedDL, wgts=w), 3), 40) for i in b[0].tolist()) >= 6
    few,rest = semisup_dls(DataLoaders(loader_of(items, cls=WeightedDL, wgts=w), loader_of(items)), 4)
    assert min(x for x,_ in few.train_ds) >= 6 and isinstance(rest, WeightedDL) and len(rest.dataset) == 16
    for _ in range(5): assert min(i for b in rest for i in b[0].tolist()) >= 6

@pytest.mark.parametrize('name', ['Phantom','ITRA dataset','ITRA matched','ITRA separate'])
def test_callbacks_over_a_weighted_loader(name):
    x,y = data(); w = np.where(np.arange(24) < 9, 0., 1.)
    x[:9] = 99.
    seen,items = [],list(zip(x, y))
    learn = new_learner(model=tanh_net(), dls=DataLoaders(loader_of(items, bs=8, cls=WeightedDL, wgts=w), loader_of(items)))
    learn.fit(3, 1e-3, cbs=[cb := NEED_CLASSES[name](), Probe(order=5, run_valid=False, after_pred=lambda l: seen.append(cb.rows.inputs[0].max()))])
    assert len(seen) == 9 and max(seen) < 99

# Data with columns of one kind, and what cannot be trained

def table_learner(cats, conts, cbs=None):
    g = np.random.default_rng(0)
    df = pd.DataFrame(dict(a=g.normal(size=60), b=g.normal(size=60), p=g.choice(['u','v'], 60), q=g.choice(['s','t','r'], 60), y=[['x','y','z'][i%3] for i in range(60)]))
    to = TabularPandas(df, [Categorify,Normalize], list(cats), list(conts), y_names='y', splits=(list(range(48)),list(range(48,60))))
    set_seed(0)
    learn = tabular_learner(to.dataloaders(bs=16, device='cpu'), layers=[8,6])
    learn.remove_cb(ProgressCallback); learn.logger = noop
    return learn

@pytest.mark.parametrize('cats,conts', [('pq',''), ('','ab'), ('p','b')], ids=['categories alone','numbers alone','both'])
@pytest.mark.parametrize('name', [n for n in OF_A_NET if n not in ('Phantom k=3','cw-VR on a feature map') and not n.startswith('VarMixup')])
def test_tables_with_columns_of_one_kind(name, cats, conts):
    learn,cb = table_learner(cats, conts),CALLBACKS[name][0]()
    if name.startswith('SemiSupervised'): cb = SemiSupervisedMixup(table_learner(cats, conts).dls.train, rampup=0., **({'layers': []} if name.endswith('input') else {}))
    if name.endswith('input') and not conts: return      # nothing there to mix
    learn.fit(2, 1e-2, cbs=cb)
    assert all(v.isfinite().all() for v in weights(learn).values())
    for term in getattr(learn.recorder, 'terms', {}).values(): assert len(term) == 6

def test_masks_are_not_read_to_be_refused(tmp_path):
    seen = []
    def mask(i): seen.append(i); return PILMask.create(np.zeros((8,8), dtype=np.uint8))
    dsets = Datasets(list(range(40)), [[lambda i: PILImage.create(np.zeros((8,8,3), dtype=np.uint8))], [mask]], splits=[list(range(32)),list(range(32,40))])
    dls = dsets.dataloaders(bs=8, after_item=[ToTensor()], after_batch=[IntToFloatTensor()], num_workers=0, device='cpu')
    seen.clear()
    for f in (lambda: MicroClusterDL(dls.train, 2), lambda: labels_of(torch.utils.data.Subset(dsets.train, range(9))), lambda: labels_of(torch.utils.data.ConcatDataset([dsets.train]*2))):
        raises(['one integer a sample', 'PILMask', '(8, 8)'], f)
    learn = new_learner(dls=dls, model=nn.Conv2d(3,2,1), loss_func=CrossEntropyLossFlat(axis=1), metrics=[])
    raises(['PhantomEmbedding', 'one integer a sample'], lambda: learn.fit(1, cbs=PhantomEmbedding()))
    assert len(seen) < 16                                # not 32 and more

def test_a_layer_that_only_one_of_two_passes_goes_through():
    class Now(nn.Module):
        def __init__(self): super().__init__(); self.a,self.b,self.out,self.n = nn.Sequential(nn.Flatten(), nn.Linear(64,6)),nn.Linear(6,6),nn.Linear(6,3),0
        def forward(self, x): self.n += 1; z = self.a(x); return self.out(self.b(z) if self.n%2 else z)
    refused(['ITRA', 'b', 'passed', 'every pass'], new_learner(model=Now()), ITRA(1., separate=True, warmup=0., layer='b'))

@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16])
@pytest.mark.parametrize('per_item', [False,True])
def test_half_precision_targets(dtype, per_item):
    x,y,seen = torch.randn(24,4),torch.randn(24,2).to(dtype),[]
    learn = new_learner(model=nn.Linear(4,2), dls=items_dls(list(zip(x, y))), loss_func=lambda p,y: F.mse_loss(p, y.float()), metrics=[])
    cb = ManifoldMixup(layers=[], per_item=per_item)
    was = []
    learn.fit(1, 1e-3, cbs=[Probe(order=0, run_valid=False, before_batch=lambda l: was.append(l.y.clone())), cb, Probe(order=9, run_valid=False, after_loss=lambda l: seen.append((l.y, mixed(was.pop().float(), cb.lam.float() if per_item else cb.lam, cb.shift))))])
    for got,want in seen: assert got.dtype == dtype; torch.testing.assert_close(got.float(), want, rtol=2e-2, atol=2e-2)
