"Calibration, neighbours and characteristics of a layer against slow loops, scikit-learn and torchmetrics; the references share no code with the package."
import itertools, math, pytest, warnings
from collections import Counter
from common import *
from latentreg_fastai.metrics import *

D,NAN,INF = torch.float64,float('nan'),float('inf')
HALF = [torch.float16, torch.bfloat16]

def near(got, want, tol=1e-6):
    "Equal numbers, `nan` to `nan`, within `tol` of the larger of 1 and what is wanted"
    assert isinstance(got, float), type(got)
    assert math.isnan(got) == math.isnan(want) and not abs(got-want) > tol*max(1, abs(want)), (got,want)

def rel(got, want, tol=1e-6):
    "The same for figures that may be small: within `tol` of what is wanted"
    assert isinstance(got, float), type(got)
    assert math.isnan(got) == math.isnan(want) and not abs(got-want) > tol*abs(want)+1e-300, (got,want)

def raises(match, f, exc=ValueError):
    with pytest.raises(exc) as e: f()
    for m in match: assert m in str(e.value), f'{m!r} is not in {e.value}'

# Calibration: the references

def confidences(p, y):
    "Confidence of each sample and whether its class of the largest probability, the first of equal ones, is right"
    return [(max(row), row.index(max(row)) == k) for row,k in zip(p, y)]

def slow_bins(p, y, n_bins, adaptive):
    "Count, mean confidence and accuracy of the bins that are not empty: (b/B, (b+1)/B], or B parts of the sorted samples, larger ones first"
    cs = confidences(p, y)
    if adaptive:
        cs,bins = sorted(cs, key=lambda c: c[0]),[]
        for b in range(n_bins):
            size = len(p)//n_bins + (b < len(p)%n_bins)
            bins.append(cs[:size]); cs = cs[size:]
    else: bins = [[c for c in cs if (b/n_bins < c[0] or b == 0) and (c[0] <= (b+1)/n_bins or b == n_bins-1)] for b in range(n_bins)]
    return [(len(b), math.fsum(c for c,_ in b)/len(b), sum(r for _,r in b)/len(b)) for b in bins if b]

def slow_ece(p, y, n_bins, adaptive): return sum(n*abs(acc-conf) for n,conf,acc in slow_bins(p, y, n_bins, adaptive))/len(p)
def slow_nll(p, y): return -math.fsum(math.log(max(row[k], 2**-1022)) for row,k in zip(p, y))/len(p)     # 708 for a probability of 0
def slow_brier(p, y): return math.fsum((v-(j == k))**2 for row,k in zip(p, y) for j,v in enumerate(row))/len(p)

def predictions(n, k, seed=0, dtype=D, sharp=2.):
    "Probabilities and labels that are more often right than not"
    g = torch.Generator().manual_seed(seed)
    logits = sharp*torch.randn(n, k, generator=g, dtype=D)
    p = logits.softmax(1)
    y = torch.where(torch.rand(n, generator=g) < .4, torch.randint(k, (n,), generator=g), torch.multinomial(p, 1, generator=g)[:,0])
    return p.to(dtype),y

def check_calibration(p, y, n_bins=15, tol=1e-6):
    "All functions against all loops, on the values as they are"
    rows,ks = p.as_subclass(Tensor).double().tolist(),y.as_subclass(Tensor).flatten().tolist()
    for adaptive in (False,True):
        near(expected_calibration_error(p, y, n_bins, adaptive), slow_ece(rows, ks, n_bins, adaptive), tol)
        df,want = calibration_bins(p, y, n_bins, adaptive),slow_bins(rows, ks, n_bins, adaptive)
        assert list(df.columns) == ['count','confidence','accuracy'] and df['count'].dtype.kind == 'i' and df['count'].sum() == len(p)
        assert len(df) == len(want)
        for got,(n,conf,acc) in zip(df.itertuples(index=False), want):
            assert got[0] == n; near(float(got[1]), conf, tol); near(float(got[2]), acc, tol)
    near(negative_log_likelihood(p, y), slow_nll(rows, ks), tol)
    near(brier_score(p, y), slow_brier(rows, ks), tol)

@pytest.mark.parametrize('n_bins', [1,2,15,40])
@pytest.mark.parametrize('shape', [(1,2), (2,2), (3,5), (14,3), (15,2), (16,10), (97,4), (400,7), (300,100)], ids=plain)
def test_calibration_is_that_of_loops(shape, n_bins):
    for seed in range(2): check_calibration(*predictions(*shape, seed=seed, sharp=1.+3*seed), n_bins)

@pytest.mark.parametrize('shape', [(1,2), (13,3), (500,10), (2000,2), (300,100)], ids=plain)
def test_calibration_is_that_of_others(shape):
    "torchmetrics has bins of equal width that hold their lower ends: the same away from the ends"
    from sklearn.metrics import log_loss, brier_score_loss
    from torchmetrics.classification import MulticlassCalibrationError
    for seed in range(3):
        p,y = predictions(*shape, seed=seed)
        for n_bins in (1,10,15,33):
            near(expected_calibration_error(p, y, n_bins), float(MulticlassCalibrationError(shape[1], n_bins, norm='l1')(p, y)))
        near(negative_log_likelihood(p, y), float(log_loss(y.numpy(), p.numpy(), labels=range(shape[1]))))
        if shape[1] == 2: near(brier_score(p, y), 2*float(brier_score_loss(y.numpy(), p[:,1].numpy(), pos_label=1)))

@pytest.mark.parametrize('dtype', [*HALF, torch.float32, D], ids=plain)
@pytest.mark.parametrize('shape', [(50,3), (60,200), (20,1000)], ids=plain)
def test_calibration_of_any_float(shape, dtype):
    "Rounded rows do not add up to 1 exactly: they are taken as they are, and sums of them are in float64"
    for seed in range(2):
        p,y = predictions(*shape, seed=seed, dtype=dtype)
        check_calibration(p, y)

@pytest.mark.parametrize('label', [lambda y: y.int(), lambda y: y.to(torch.uint8), lambda y: y[:,None], lambda y: TensorCategory(y), lambda y: torch.stack([y,y], 1)[:,:1]],
                         ids=['int32','uint8','column','TensorCategory','strided'])
def test_calibration_of_subclasses_and_label_kinds(label):
    p,y = predictions(40, 5)
    for q in (p.as_subclass(TensorBase), p.float().as_subclass(TensorImage), p.t().contiguous().t(), p.clone().requires_grad_()):
        check_calibration(q.detach(), label(y))
        for f in (expected_calibration_error,negative_log_likelihood,brier_score): near(f(q, label(y)), f(p, y))

@pytest.mark.parametrize('n_bins', [1,2,4,5,8,10,15,16,20,25])              # for 20 and 25 some ends of `linspace` are an ulp off
def test_a_confidence_on_the_end_of_a_bin(n_bins):
    "A bin holds its upper end, as far as the literal `b/B` is that end; a confidence of 1 is in the last, whatever rounds above 1 too"
    for k in (2,3,10):
        conf = [b/n_bins for b in range(1, n_bins+1) if b/n_bins > 1/k]
        p = torch.tensor([[c]+[(1-c)/(k-1)]*(k-1) for c in conf], dtype=D)
        check_calibration(p, torch.arange(len(p))%2, n_bins)
        assert calibration_bins(p, torch.zeros(len(p)).long(), n_bins)['count'].tolist() == [1]*len(conf)   # each has a bin of its own
    df = calibration_bins(tensor([[1.0000001,0.], [1.,0.]]), tensor([0,1]), n_bins)
    assert df['count'].tolist() == [2] and df.accuracy.tolist() == [.5]

@pytest.mark.parametrize('n', [1,2,5])
@pytest.mark.parametrize('k', [2,4])
def test_calibration_by_hand(n, k):
    sure,wrong = torch.eye(k)[torch.zeros(n).long()],torch.ones(n).long()
    for adaptive in (False,True):
        assert expected_calibration_error(sure, wrong, adaptive=adaptive) == 1 and expected_calibration_error(sure, wrong*0, adaptive=adaptive) == 0
        near(expected_calibration_error(torch.full((n,k), 1/k), wrong, adaptive=adaptive), 1/k)      # draws go to class 0
    assert brier_score(sure, wrong) == 2 and brier_score(sure, wrong*0) == 0 and negative_log_likelihood(sure, wrong*0) == 0
    near(negative_log_likelihood(torch.full((n,k), 1/k), wrong), math.log(k))
    assert 708 < negative_log_likelihood(sure, wrong) < 709                  # finite for a probability of 0

def test_calibration_of_one_class_only():
    p,_ = predictions(60, 4)
    for k in range(4): check_calibration(p, torch.full((60,), k))

def test_fewer_samples_than_bins():
    for n in (1,2,3,14):
        p,y = predictions(n, 3)
        check_calibration(p, y, 15); check_calibration(p, y, 1000)
        assert calibration_bins(p, y, 15, adaptive=True)['count'].tolist() == [1]*n

@pytest.mark.parametrize('adaptive', [False,True])
@pytest.mark.parametrize('k', [2,10])
def test_ece_of_perfect_and_of_hopeless_calibration(k, adaptive):
    p,_ = predictions(100_000, k, seed=1)
    y = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(2))[:,0]                     # labels are what the model says
    assert expected_calibration_error(p, y, adaptive=adaptive) < .01
    df = calibration_bins(p, y, adaptive=adaptive)
    if adaptive: assert df['count'].max() - df['count'].min() <= 1 and len(df) == 15 and df.confidence.is_monotonic_increasing
    sure = F.one_hot((y+1)%k, k)*.98 + .02/k                                                         # always certain, always wrong
    assert expected_calibration_error(sure, y, adaptive=adaptive) > .85

def test_calibration_changes_nothing_it_is_given():
    p,y = predictions(30, 3)
    q,t = p.clone(),y.clone()
    check_calibration(p, y)
    assert torch.equal(p, q) and torch.equal(y, t)

P,Y = predictions(6, 3)
def with_value(t, v): t = t.clone(); t[2,1] = v; return t
FUNCTIONS = {f.__name__: f for f in (expected_calibration_error, calibration_bins, negative_log_likelihood, brier_score)}

@pytest.mark.parametrize('name', FUNCTIONS)
@pytest.mark.parametrize('p,y,match', [
    (P.log(), Y, 'softmax'), (4*P, Y, 'softmax'), (P/2, Y, 'softmax'), (P.logit(), Y, 'softmax'), (torch.zeros(6, 3), Y, 'softmax'),
    (with_value(P, NAN), Y, 'finite'), (with_value(P, INF), Y, 'finite'), (with_value(P.half(), NAN), Y, 'finite'),
    (P[:,0], Y, '0 to 1'), (P[:,:1], Y, '0 to 1'), (2*P[:,0], Y%2, 'sigmoid'), (P[:,0], Y%2+.5, '0 to 1'), (P[None], Y, 'shape'), (P[...,None], Y, 'shape'), (torch.eye(3).long(), Y[:3], 'int64'),
    (P, Y.float(), 'label'), (P, F.one_hot(Y, 3), 'label'), (P, F.one_hot(Y, 3).float(), 'label'), (P, Y[:5], 'label'), (P[:5], Y, 'label'),
    (P, Y.view(2, 3), 'label'), (P, Y.view(3, 2).T, 'label'),               # as many labels as samples, but in rows
    (P, torch.where(Y == 2, 3, Y).where(torch.arange(6) > 0, 3), '0 to 2'), (P, torch.arange(6)-1, '0 to 2'), (P, Y-100, '0 to 2'),
    (P[:0], Y[:0], 'no samples'), (P, Y*0-100, 'no samples with a label'), (P, Y*1j, 'label'), (P.to(torch.complex64), Y, 'shape')])
def test_bad_probabilities_and_labels(name, p, y, match): raises([name, match], lambda: FUNCTIONS[name](p, y))

@pytest.mark.parametrize('n_bins', [0,-1,1.5,15.,'15',None,(15,)], ids=plain)
def test_bad_n_bins(n_bins):
    for adaptive in (False,True):
        raises(['expected_calibration_error','n_bins'], lambda: expected_calibration_error(P, Y, n_bins, adaptive))
        raises(['calibration_bins','n_bins'],           lambda: calibration_bins(P, Y, n_bins, adaptive))
        raises(['ECE','n_bins'],                        lambda: ECE(n_bins, adaptive))

# Calibration in a learner

def many(): return [ECE(), NLL(), Brier(), ECE(adaptive=True), ECE(4)]
def by_functions(p, y):
    return [expected_calibration_error(p, y), negative_log_likelihood(p, y), brier_score(p, y), expected_calibration_error(p, y, adaptive=True), expected_calibration_error(p, y, 4)]
def uneven(n=13):
    "Loaders with validation batches of 5, 5 and 3"
    set_seed(0)
    return tensor_dls(data(), data(n, seed=1), bs=8, val_bs=5, device='cpu')
def all_near(got, want):
    assert len(got) == len(want)
    for g,w in zip(got, want): near(g, w)

class Preds(Callback):
    "What the model and the loader gave, epoch by epoch, in validation"
    order = 1000
    def before_fit(self): self.epochs = []
    def before_validate(self): self.epochs.append(([],[]))
    def after_pred(self):
        if not self.training: self.epochs[-1][0].append(self.pred.detach().clone()); self.epochs[-1][1].append(self.y.clone())

LOSSES = {'CrossEntropyLossFlat': CrossEntropyLossFlat, 'LabelSmoothing': lambda: LabelSmoothingCrossEntropyFlat(eps=.2), 'Focal': lambda: FocalLossFlat(gamma=3.),
          'nn.CrossEntropyLoss': nn.CrossEntropyLoss, 'F.cross_entropy': lambda: F.cross_entropy}

@pytest.mark.parametrize('n', [13,10,5,1])
@pytest.mark.parametrize('loss', LOSSES)
def test_metrics_are_the_functions_of_get_preds(loss, n):
    learn = new_learner(dls=uneven(n), loss_func=LOSSES[loss](), metrics=many(), cbs=[seen := Preds()])
    learn.fit(2, 1e-2)
    rows,epochs = list(learn.recorder.values),seen.epochs                                             # `get_preds` begins them anew
    assert len(rows) == len(epochs) == 2
    for row,(ps,ys) in zip(rows, epochs): all_near(row[2:], by_functions(torch.cat(ps).double().softmax(1), torch.cat(ys)))
    p,y = learn.get_preds()
    if not hasattr(learn.loss_func, 'activation'): p = p.double().softmax(1)                          # then predictions are as the model has them
    all_near(rows[-1][2:], want := by_functions(p, y))
    all_near(learn.validate()[1:], want)

def test_nothing_is_kept_between_epochs_fits_and_loaders():
    learn = new_learner(dls=uneven(), metrics=many(), cbs=[seen := Preds()])
    for fit in range(2):
        learn.fit(3, 3e-2)
        assert len(learn.recorder.values) == 3 == len({tuple(r) for r in learn.recorder.values}) and [len(p) for p,_ in seen.epochs] == [3]*3
        for row,(ps,ys) in zip(learn.recorder.values, seen.epochs): all_near(row[2:], by_functions(torch.cat(ps).double().softmax(1), torch.cat(ys)))
    for n in (7,1,29):
        dl = uneven(n).valid
        all_near(learn.validate(dl=dl)[1:], by_functions(*learn.get_preds(dl=dl)))
    all_near(learn.validate()[1:], by_functions(*learn.get_preds()))

def test_names_in_the_table():
    learn = new_learner(dls=uneven(), metrics=[ECE(), NLL(), Brier()])
    learn.fit(1)
    assert list(learn.recorder.metric_names) == ['epoch','train_loss','valid_loss','calibration_error','nll_loss','brier_loss','time']
    near(learn.recorder.values[-1][3], learn.recorder.values[-1][1])                                 # the loss is the NLL here
    class Twice(Brier): pass
    assert [m.name for m in (ECE(adaptive=True), NLL(), Brier(), Twice())] == ['adaptive_calibration_error','nll_loss','brier_loss','twice_loss']

def test_metrics_leave_the_training_as_it_is():
    def fitted(metrics): learn = new_learner(dls=uneven(), metrics=metrics); learn.fit(2, 1e-2); return learn
    plain,watched = fitted(accuracy),fitted(many())
    assert same(weights(plain), weights(watched)) and [r[:2] for r in plain.recorder.values] == [r[:2] for r in watched.recorder.values]

def test_metrics_of_training_too():
    learn = new_learner(dls=uneven(), metrics=[NLL(), Brier()])
    learn.recorder.train_metrics = True
    learn.fit(2, 1e-2)
    near(learn.recorder.values[-1][4], learn.recorder.values[-1][3])                                 # valid loss and NLL; 0 to 2 are of training
    assert len(learn.recorder.values[-1]) == 6 and 0 <= learn.recorder.values[-1][2] <= 2

ACTS = {'temperature': (lambda x: (x/3).softmax(-1), None), 'softmax': (partial(F.softmax, dim=-1), None), 'exp': (torch.exp, nn.LogSoftmax(dim=1)), 'noop': (noop, nn.Softmax(dim=1))}
@pytest.mark.parametrize('act', ACTS)
def test_act_turns_predictions_into_probabilities(act):
    f,last = ACTS[act]
    metrics = [ECE(act=f), NLL(f), Brier(act=f), ECE(15, True, f), ECE(4, act=f)]
    learn = new_learner(dls=uneven(), model=nn.Sequential(net(), *([last] if last else [])), metrics=metrics, loss_func=nn.CrossEntropyLoss())   # `act` is before the loss's
    all_near(learn.validate()[1:], by_functions(*learn.get_preds(act=f)))
    learn.loss_func = CrossEntropyLossFlat()
    all_near(learn.validate()[1:], by_functions(*learn.get_preds(act=f)))

class Given(Module):
    def __init__(self): self.unused = nn.Parameter(torch.zeros(1))                                    # fastai asks a model for one
    def forward(self, x): return x
def given(logits, y, metrics, loss=None, **kwargs):
    "A learner whose predictions are `logits`"
    return new_learner(dls=tensor_dls((logits,y), (logits,y), bs=2, val_bs=2, device='cpu'), model=Given(), metrics=metrics, loss_func=loss or CrossEntropyLossFlat(), **kwargs)

@pytest.mark.parametrize('loss', ['CrossEntropyLossFlat','nn.CrossEntropyLoss'])
@pytest.mark.parametrize('dtype', [torch.float16,torch.float32,D], ids=plain)
def test_confident_and_wrong(loss, dtype):
    "What float32 would round to a probability of 0 costs what it should"
    logits,y = tensor([[200.,0.], [0.,200.], [100.,-100.], [-300.,-100.], [50.,0.]]).to(dtype),tensor([1,0,1,0,1])
    got = given(logits, y, [NLL(),ECE(),Brier()], LOSSES[loss]()).validate()[1:]
    near(got[0], 850/5, 1e-9); near(got[1], 1.); near(got[2], 2.)
    got, = given(tensor([[5e3,0.]]).to(dtype), tensor([1]), NLL()).validate()[1:]
    assert 708 < got < 709

@pytest.mark.parametrize('v', [NAN,INF,-INF])
def test_a_diverged_model_gives_nan(v):
    learn = new_learner(dls=uneven(), metrics=many())
    with torch.no_grad(): learn.model[-1].weight[0,0] = v; learn.model[-1].bias[0] = NAN
    assert all(math.isnan(x) for x in learn.validate()[1:])
    learn.fit(1, 0.)
    assert len(learn.recorder.values) == 1 and all(math.isnan(x) for x in learn.recorder.values[0][2:])
    learn.model.load_state_dict(new_learner().model.state_dict())                                     # and the metrics recover with it
    all_near(learn.validate()[1:], by_functions(*learn.get_preds()))

def test_one_diverged_prediction_of_many():
    logits = torch.randn(7, 3); logits[3,1] = NAN
    assert all(math.isnan(v) for v in given(logits, torch.arange(7)%3, many()).validate()[1:])

@pytest.mark.parametrize('metric', [ECE,NLL,Brier])
def test_what_no_metric_can_measure(metric):
    name = metric.__name__
    x,y = data(12)
    multi = tensor_dls((x,F.one_hot(y, 3).float()), (x,F.one_hot(y, 3).float()), bs=4, device='cpu')
    learn = new_learner(dls=multi, loss_func=BCEWithLogitsLossFlat(), metrics=metric())
    raises([name,'integer label','float32','(8, 3)'], learn.validate, TypeError)
    raises([name,'integer label'], lambda: learn.fit(1), TypeError)
    class Gives(Module):
        def __init__(self, f): self.f,self.l = f,nn.Linear(64, 3)
        def forward(self, x): return self.f(self.l(x.flatten(1)))
    zero = lambda p, y: torch.zeros((), requires_grad=True)
    for f,what in ((lambda t: ('a',2), 'tuple'), (lambda t: t[...,None], '(10, 3, 1)'), (lambda t: t[:,0], 'one output'), (lambda t: t[:,:1], 'one output'), (lambda t: t[:4], '(4, 3)'), (lambda t: t.long(), 'int64')):
        raises([name,what], new_learner(dls=tensor_dls(data(), data(10), bs=5, val_bs=10, device='cpu'), model=Gives(f), loss_func=zero, metrics=metric()).validate, TypeError)

def test_metrics_of_label_columns_and_tensor_subclasses():
    x,y = predictions(11, 4); x = x.log().float()
    want = by_functions(x.double().softmax(1), y)
    for labels in (y, y[:,None], y.int()): all_near(given(TensorImage(x), labels, many(), lambda p, t: F.cross_entropy(p.as_subclass(Tensor), t.as_subclass(Tensor).view(-1).long())).validate()[1:], want)

def test_a_metric_without_batches_has_no_value():
    for m in many(): m.reset(); assert m.value is None

# Samples without a label

def without(p, y, ignored):
    "Rows and labels of the samples that have a label"
    return zip(*[(r,k) for r,k in zip(p.double().tolist(), y.tolist()) if k != ignored])
def slow(p, y, ignored):
    rows,ks = map(list, without(p, y, ignored))
    return [slow_ece(rows, ks, 15, False), slow_nll(rows, ks), slow_brier(rows, ks), slow_ece(rows, ks, 15, True), slow_ece(rows, ks, 4, False)]

class Wrapped(Module):
    "A loss of the user's own, which holds one of torch's"
    def __init__(self, **kwargs): self.ce = nn.CrossEntropyLoss(**kwargs)
    def forward(self, p, y): return 2*self.ce(p, y)
IGNORING = {'flat': lambda i: CrossEntropyLossFlat(ignore_index=i), 'torch': lambda i: nn.CrossEntropyLoss(ignore_index=i), 'partial': lambda i: partial(F.cross_entropy, ignore_index=i),
            'wrapped': lambda i: Wrapped(ignore_index=i), 'base': lambda i: BaseLoss(nn.CrossEntropyLoss, ignore_index=i), 'nll': lambda i: nn.NLLLoss(ignore_index=i)}

@pytest.mark.parametrize('ignored', [-100,255,1,-1])
@pytest.mark.parametrize('loss', IGNORING)
def test_samples_that_the_loss_ignores_are_left_out(loss, ignored):
    p,y = predictions(40, 4); logits = p.log().float(); p = logits.double().softmax(1)
    y = torch.where(torch.arange(40)%5 == 0, ignored, y)
    all_near(given(logits, y, many(), IGNORING[loss](ignored)).validate()[1:], slow(p, y, ignored))
    all_near([f(p, y, ignore_index=ignored) for f in (expected_calibration_error,negative_log_likelihood,brier_score)], slow(p, y, ignored)[:3])
    assert calibration_bins(p, y, ignore_index=ignored)['count'].sum() == (y != ignored).sum()

def test_ignored_labels_need_no_argument():
    "As in torch, where losses that do not say ignore −100"
    p,y = predictions(40, 4); logits = p.log().float(); p = logits.double().softmax(1)
    y[::3] = -100
    for loss in (CrossEntropyLossFlat(), nn.CrossEntropyLoss(), F.cross_entropy, LabelSmoothingCrossEntropyFlat(), lambda p, y: F.cross_entropy(p, y)):
        all_near(given(logits, y, many(), loss).validate()[1:], slow(p, y, -100))
    check_calibration(p[y >= 0], y[y >= 0])
    near(expected_calibration_error(p, y), slow(p, y, -100)[0])
    y[2:4] = -100                                                                     # a batch without any
    all_near(given(logits, y, many(), nn.CrossEntropyLoss(reduction='sum')).validate()[1:], slow(p, y, -100))

def test_no_sample_has_a_label():
    assert all(math.isnan(v) for v in given(torch.randn(6, 3), torch.full((6,), -100), many(), nn.CrossEntropyLoss(reduction='sum')).validate()[1:])

def test_features_of_samples_without_a_label():
    z,y,v,w = clouds(40, 30, 5)
    z[:5],v[:4] = 1e3,-1e3                                                            # what is left out is far away
    z0,y0,v0,w0 = z[5:],y[5:],v[4:],w[4:]
    for ignored in (-100,7,2**40):
        yi,wi = y.clone(),w.clone(); yi[:5],wi[:4] = ignored,ignored
        kw = {} if ignored == -100 else dict(ignore_index=ignored)
        near(knn_error(z, yi, v, wi, 3, **kw), slow_knn(z0.tolist(), y0.tolist(), v0.tolist(), w0.tolist(), 3))
        near(intra_inter(z, yi, **kw), slow_intra_inter(z0.tolist(), y0.tolist()))
        assert characteristics(z.relu(), yi, **kw) == characteristics(z0.relu(), y0)
    raises(['intra_inter','two samples'], lambda: intra_inter(z, torch.full((40,), -100)))

# One output

def slow_two(p, y):
    "Of a binary classifier, by the probability of the second class"
    rows,ks = [[1-v,v] for v in p],[int(k) for k in y]
    return [slow_ece(rows, ks, 15, False), slow_nll(rows, ks), slow_brier(rows, ks), slow_ece(rows, ks, 15, True), slow_ece(rows, ks, 4, False)]

BINARY = {'BCE flat': (BCEWithLogitsLossFlat, None), 'BCE': (nn.BCEWithLogitsLoss, None), 'F.bce': (lambda: F.binary_cross_entropy_with_logits, None), 'partial': (lambda: partial(F.binary_cross_entropy_with_logits, reduction='mean'), None),
          'probabilities': (nn.BCELoss, torch.sigmoid), 'probabilities, flat': (BCELossFlat, torch.sigmoid)}
LABELS_OF_TWO = {'float': lambda y: y.float(), 'column': lambda y: y.float()[:,None], 'int': lambda y: y, 'bool': lambda y: y.bool(), 'uint8 column': lambda y: y.byte()[:,None], 'half': lambda y: y.half()}
@pytest.mark.parametrize('labels', LABELS_OF_TWO)
@pytest.mark.parametrize('loss', BINARY)
@pytest.mark.parametrize('column', [True,False])
def test_one_output_is_a_probability(loss, labels, column):
    if (loss,labels) == ('probabilities, flat','half'): pytest.skip('which torch refuses')
    make,last = BINARY[loss]
    x = 2*torch.randn(23, generator=torch.Generator().manual_seed(1)); y = (x + torch.randn(23, generator=torch.Generator().manual_seed(2)) > 0).long()
    y[0] = 1 - y[0]
    inner = make()
    fits = lambda p, t: inner(p, t.as_subclass(Tensor).view(p.shape).to(p)) if not isinstance(inner, BaseLoss) else inner(p, t)
    out = x if last is None else last(x)
    learn = given(out[:,None] if column else out, LABELS_OF_TWO[labels](y), many(), inner if isinstance(inner, BaseLoss) else None)
    if not isinstance(inner, BaseLoss): fits.func = inner; learn.loss_func = fits
    want = slow_two(x.double().sigmoid().tolist(), y.tolist())
    all_near(learn.validate()[1:], want)
    p = x.sigmoid()
    got = [f(p[:,None] if column else p, LABELS_OF_TWO[labels](y)) for f in (expected_calibration_error,negative_log_likelihood,brier_score)]
    for g,w in zip(got, want): near(g, w, 1e-5)
    from sklearn.metrics import brier_score_loss, log_loss
    near(got[2], 2*float(brier_score_loss(y, p)), 1e-5); near(got[1], float(log_loss(y, p)), 1e-5)

def test_one_output_that_is_sure_and_wrong():
    x,y = tensor([200.,-200.,50.,40.]),tensor([0.,1.,0.,1.])
    got = given(x[:,None], y, [NLL(),Brier(),ECE()], BCEWithLogitsLossFlat()).validate()[1:]
    near(got[0], 450/4, 1e-9); near(got[1], 6/4); near(got[2], .75)

def test_act_of_one_output():
    x,y = torch.randn(9, 1),torch.arange(9)%2
    want = slow_two(x.double().sigmoid().flatten().tolist(), y.tolist())
    own = lambda p, t: F.soft_margin_loss(p, 2*t[:,None].float()-1)
    for act in (torch.sigmoid, nn.Sigmoid()): all_near(given(x, y, [ECE(act=act), NLL(act), Brier(act)], own).validate()[1:], want[:3])
    all_near(given(x.sigmoid(), y, [ECE(act=noop), NLL(noop), Brier(noop)], own).validate()[1:], [*want[:3]])
    class Own(Module):
        def forward(self, p, t): return own(p, t)
        def activation(self, x): return torch.sigmoid(x)
    all_near(given(x, y, many(), Own()).validate()[1:], want)

@pytest.mark.parametrize('metric', [ECE,NLL,Brier])
def test_one_output_that_is_no_probability(metric):
    x,y = torch.randn(9, 1),torch.arange(9)%2
    for loss in (MSELossFlat(), L1LossFlat(), CrossEntropyLossFlat(), nn.CrossEntropyLoss(), lambda p, t: F.mse_loss(p, t[:,None].float())):
        zero = lambda p, t: p.sum()*0
        learn = given(x, y, metric(), loss)
        learn.model.loss = loss
        if isinstance(loss, nn.CrossEntropyLoss) or (isinstance(loss, BaseLoss) and 'Cross' in type(loss).__name__): y = y*0; learn = given(x, y, metric(), loss)
        raises([metric.__name__,'one output','act'], learn.validate, TypeError)
    raises([metric.__name__,'one output'], given(x, torch.arange(9)%2, metric(act=partial(F.softmax, dim=-1)), MSELossFlat()).validate, TypeError)
    raises([metric.__name__,'no probabilities'], given(4*x, torch.arange(9)%2, metric(act=noop), BCEWithLogitsLossFlat()).validate)
    raises([metric.__name__,'0 to 1'], given(x, tensor([0.,1.,.5]*3), metric(), BCEWithLogitsLossFlat()).validate)          # soft targets are no labels
    raises([metric.__name__,'0 to 1'], given(x, torch.arange(9)%3, metric(), BCEWithLogitsLossFlat()).validate)

# What models return

class Returns(Module):
    def __init__(self, f): self.f,self.unused = f,nn.Parameter(torch.zeros(1))
    def forward(self, x): return self.f(x)
def model_output(x):
    from transformers.modeling_outputs import SequenceClassifierOutput
    return SequenceClassifierOutput(loss=x.sum(), logits=x)
OUTPUTS = {'tuple': lambda x: (x,x+1), 'list': lambda x: [x,'a'], 'dict': lambda x: {'logits': x, 'aux': x+1}, 'dict, later': lambda x: {'loss': x.mean(), 'hidden': x[:,None]+1, 'logits': x}, 'nested': lambda x: {'a': (x.mean(),x)}, 'ModelOutput': model_output}
@pytest.mark.parametrize('out', OUTPUTS)
def test_metrics_of_whatever_a_model_returns(out):
    if out == 'ModelOutput': pytest.importorskip('transformers')
    p,y = predictions(11, 4); x = p.log().float()
    dls = tensor_dls((x,y), (x,y), bs=4, val_bs=4, device='cpu')
    learn = new_learner(dls=dls, model=Returns(OUTPUTS[out]), metrics=many(), loss_func=lambda o, y: torch.zeros((), requires_grad=True))
    all_near(learn.validate()[1:], by_functions(x.double().softmax(1), y))

def test_a_loss_with_an_activation_that_does_nothing():
    "fastai's `BaseLoss` around a loss of torch's: predictions are logits all the same"
    p,y = predictions(11, 4); x = p.log().float() + 1
    all_near(given(x, y, many(), BaseLoss(nn.CrossEntropyLoss)).validate()[1:], by_functions(x.double().softmax(1), y))

@pytest.mark.parametrize('metric', [ECE,NLL,Brier])
def test_what_is_noticed_at_the_end(metric):
    x,y = predictions(11, 4)[0].log().float(),torch.arange(11)%4
    zero = lambda p, t: p.sum()*0
    raises([metric.__name__,'from 0 to 4','0 to 3'], given(x, torch.arange(11)%5, metric(), zero).validate)
    raises([metric.__name__,'from -1 to 3'], given(x, y - (y == 2)*3, metric(), zero).validate)
    raises([metric.__name__,'no probabilities','softmax'], given(x, y, metric(act=noop), zero).validate)
    raises([metric.__name__,'no probabilities'], given(x, y, metric(act=torch.sigmoid), zero).validate)
    for bad in (y.float(), F.one_hot(y, 4)): raises([metric.__name__,'label'], given(x, bad, metric(), zero).validate, TypeError)
    raises([metric.__name__,'complex64'], lambda: metric().accumulate(SimpleNamespace(pred=x, y=y*1j, loss_func=zero)), TypeError)

@pytest.mark.parametrize('dtype', HALF+[torch.float32,D], ids=plain)
@pytest.mark.parametrize('labels', [torch.uint8,torch.int8,torch.int32,torch.int64], ids=plain)
def test_predictions_of_any_precision(dtype, labels):
    x,y = predictions(23, 4)[0].log().to(dtype),torch.arange(23)%4
    all_near(given(x, y.to(labels), many(), lambda p, t: F.cross_entropy(p.float(), t.long())).validate()[1:], by_functions(x.double().softmax(1), y))

# Devices

FUNCTIONS_OF_TWO = dict(ece=lambda p, y, z: expected_calibration_error(p, y), bins=lambda p, y, z: float(calibration_bins(p, y).accuracy.sum()), nll=lambda p, y, z: negative_log_likelihood(p, y), brier=lambda p, y, z: brier_score(p, y),
    one=lambda p, y, z: brier_score(p[:,0], y%2), ii=lambda p, y, z: intra_inter(z, y), ch=lambda p, y, z: characteristics(z.relu(), y)['cw_correlation'], rank=lambda p, y, z: effective_rank(z),
    knn=lambda p, y, z: knn_error(z, y, p.float()+1, y, 3), fd=lambda p, y, z: frechet_distance(z, p.float()))
@pytest.mark.parametrize('name', FUNCTIONS_OF_TWO)
@pytest.mark.parametrize('double', [True,False])
def test_tensors_on_two_devices(name, double, monkeypatch):
    "Those of the CPU and of another device are brought together; `double` is false for one without float64, as Apple's"
    import latentreg_fastai.metrics as m
    from pretend import Elsewhere,pretending
    p,y = predictions(24, 4, dtype=torch.float32); z = relu_like(24, 4).float()
    want = FUNCTIONS_OF_TWO[name](p, y, z)
    monkeypatch.setattr(m, 'no_double', set() if double else {'meta'})
    for there in itertools.product((False,True), repeat=3):
        with pretending(double): got = FUNCTIONS_OF_TWO[name](*[Elsewhere(t) if d else t for t,d in zip((p,y,z), there)])
        near(got, want, 1e-5)

@pytest.mark.parametrize('metric', [ECE,NLL,Brier])
@pytest.mark.parametrize('double', [True,False])
def test_metrics_on_two_devices(metric, double, monkeypatch):
    import latentreg_fastai.metrics as m
    from pretend import Elsewhere,pretending
    p,y = predictions(24, 4, dtype=torch.float32)
    monkeypatch.setattr(m, 'no_double', set() if double else {'meta'})
    def value(x, y):
        me = metric(); me.reset()
        me.accumulate(SimpleNamespace(pred=x, y=y, loss_func=F.cross_entropy, to_detach=lambda t, cpu: t.detach()))
        return me.value
    want = value(p.log(), y)
    for a,b in itertools.product((False,True), repeat=2):
        with pretending(double): near(value(*[Elsewhere(t) if d else t for t,d in ((p.log(),a),(y,b))]), want)

# Nearest neighbours

def clouds(n, m, *shape, n_classes=4, seed=0, dtype=D, spread=1.):
    g = torch.Generator().manual_seed(seed)
    y,w = (torch.randint(n_classes, (i,), generator=g) for i in (n,m))
    at = torch.randn(n_classes, *shape, generator=g, dtype=D)
    return [t.to(dtype) if t.is_floating_point() else t for t in (at[y] + spread*torch.randn(n, *shape, generator=g, dtype=D), y, at[w] + spread*torch.randn(m, *shape, generator=g, dtype=D), w)]

def slow_knn(z, y, v, w, k):
    "A majority of the `k` nearest; a draw goes to the smaller label"
    wrong = 0
    for row,label in zip(v, w):
        votes = Counter(c for _,c in sorted((math.dist(row, r), c) for r,c in zip(z, y))[:k])
        wrong += min(c for c in votes if votes[c] == max(votes.values())) != label
    return wrong/len(v)

@pytest.mark.parametrize('shape', [(40,30,5), (40,30,1), (25,2,3), (30,50,60), (60,17,2,3,2), (24,9,)], ids=plain)
@pytest.mark.parametrize('seed', range(3))
def test_knn_is_that_of_loops_and_of_sklearn(shape, seed):
    from sklearn.neighbors import KNeighborsClassifier
    z,y,v,w = clouds(*shape, seed=seed, n_classes=2+2*seed)
    ks = (1,2,3,5,20,shape[0])
    errors = knn_error(z, y, v, w, ks)
    assert list(errors) == list(ks) and all(knn_error(z, y, v, w, ks, chunk) == errors for chunk in (1,7,len(v)))
    rows,others = z.reshape(len(z), -1),v.reshape(len(v), -1)
    for k in ks:
        sk = KNeighborsClassifier(k, algorithm='brute').fit(rows.numpy(), y.numpy())
        near(errors[k], slow_knn(rows.tolist(), y.tolist(), others.tolist(), w.tolist(), k))
        near(errors[k], 1 - float(sk.score(others.numpy(), w.numpy())))
        near(knn_error(z, y, v, w, k), errors[k])                                                     # an int gives a float

@pytest.mark.parametrize('dtype', [torch.float32,D])
@pytest.mark.parametrize('far,near_', [(1e3,1e-2), (1e6,1.), (1e8,8.), (1e20,1e17), (1e-18,1e-20), (1e8,1e-2)], ids=str)
@pytest.mark.parametrize('at_0', [False,True])
def test_knn_in_tight_clusters_far_apart(dtype, far, near_, at_0):
    "Four clusters, each of two classes that lie close together; one of the clusters may be near 0, where floats are finer"
    g = torch.Generator().manual_seed(0)
    center,cluster,y = torch.randn(4, 8, generator=g, dtype=D)*far,torch.arange(80)%4,torch.arange(80)//4%2
    if at_0: center[0] = 0
    z,v = ((center[cluster] + near_*(torch.randn(80, 8, generator=g, dtype=D)*.1 + 2*y[:,None])).to(dtype) for _ in range(2))
    for k in (1,3): near(knn_error(z, y, v, y, k), slow_knn(z.tolist(), y.tolist(), v.tolist(), y.tolist(), k))
    assert (dtype == torch.float32 and (far,near_) == (1e8,1e-2)) or knn_error(z, y, v, y, 3) == 0         # float32 cannot hold that one

def test_knn_defaults_and_kinds_of_k():
    c = clouds(50, 20, 3)
    assert list(knn_error(*c)) == [1,5,20] and all(isinstance(e, float) for e in knn_error(*c).values())
    assert knn_error(*c, [5]) == knn_error(*c, (5,)) == {5: knn_error(*c, 5)} == {5: knn_error(*c, np.int64(5))}

def test_knn_of_repeated_k():
    c = clouds(50, 20, 3)
    assert knn_error(*c, (5,5,1)) == knn_error(*c, (5,1))                                             # errors are not counted twice

def test_knn_of_a_range():
    c = clouds(50, 20, 3)
    assert knn_error(*c, range(1, 4)) == knn_error(*c, (1,2,3))                                       # an iterable as any other

def test_knn_votes_by_hand():
    z,y = tensor([0.,1,2,3,10,11]),tensor([1,0,2,2,5,5])
    assert knn_error(z, y, tensor([.1,10.4]), tensor([1,5]), (1,2)) == {1: 0., 2: .5}                 # of 1 and 0 the smaller wins
    assert knn_error(z, y, tensor([.1,10.4]), tensor([2,5]), (4,)) == {4: .5}                         # 2 has most votes by .1; 5 and 2 a draw by 10.4
    assert knn_error(z, y, z, y, 1) == 0 and knn_error(z, y, z, tensor([7]*6), 6) == 1                # a label that no feature has

@pytest.mark.parametrize('dtype,offset', [*((d,0.) for d in HALF), (torch.float32,0.), (torch.float32,1e4)], ids=plain)
def test_knn_in_other_floats(dtype, offset):
    z,y,v,w = clouds(60, 40, 4, spread=.1)
    z,v = (z+offset).to(dtype),(v+offset).to(dtype)
    assert knn_error(z, y, v, w, (1,)) == knn_error(z.double(), y, v.double(), w, (1,))
    assert knn_error(TensorImage(z), TensorCategory(y), TensorBase(v), w[:,None], 1) == knn_error(z, y.int(), v, w, 1)

@pytest.mark.parametrize('dtypes', [(D,torch.float32), (torch.float32,D), (D,torch.float16), (torch.float16,D)], ids=plain)   # either may be the better one
def test_knn_of_mixed_floats(dtypes):
    z,y,v,w = clouds(60, 40, 4, spread=.1)
    near(knn_error(z.to(dtypes[0]), y, v.to(dtypes[1]), w, 1), knn_error(z, y, v, w, 1))

@pytest.mark.parametrize('relabel', [lambda y: y-2, lambda y: y*10**15], ids=['negative','large'])
def test_knn_of_any_labels(relabel):
    z,y,v,w = clouds(40, 30, 3)
    assert knn_error(z, relabel(y), v, relabel(w)) == knn_error(z, y, v, w)                           # labels are no places in a table of votes

def test_knn_of_one_sample():
    z,y,v,w = clouds(40, 30, 3)
    for i in range(3): assert knn_error(z, y, v[i:i+1], w[i:i+1], 3) in (0.,1.)                       # one to classify is enough
    near(knn_error(z[:1], y[:1], v, w, 1), sum(w.tolist()[i] != int(y[0]) for i in range(30))/30)

Z = clouds(20, 10, 4)
@pytest.mark.parametrize('change,match', [
    (dict(k=21), ['1 to 20','21']), (dict(k=(1,21)), ['1 to 20']), (dict(k=0), ['1 to 20']), (dict(k=-1), ['1 to 20']), (dict(k=1.5), ['1.5']), (dict(k=None), ['`k`']), (dict(k='1'), ['`k`']),
    (dict(k=()), ['`k`']),                                                                            # the error is not that of `max`
    (dict(v=Z[2][:,:3]), ['4 and 3 units']), (dict(z=Z[0].view(20, 4, 1).expand(20, 4, 2)), ['8 and 4 units']),
    (dict(z=with_value(Z[0], NAN)), ['1 of 20','NaN']), (dict(v=with_value(Z[2], NAN)), ['1 of 10','NaN']), (dict(z=with_value(Z[0], INF)), ['1 of 20']), (dict(v=with_value(Z[2], -INF)), ['1 of 10']),
    (dict(y=Z[1][:-1]), ['label']), (dict(w=Z[1]), ['label']), (dict(y=Z[1].float()), ['label','float32']), (dict(w=F.one_hot(Z[3], 4)), ['label']),
    (dict(z=Z[0].long()), ['int64']), (dict(v=Z[2].numpy()), ['ndarray']), (dict(z=Z[0][:0], y=Z[1][:0]), ['one sample']), (dict(v=Z[2][:0], w=Z[3][:0]), ['one sample'])])
def test_bad_knn(change, match):
    args = {**dict(zip('zyvw', Z)), 'k': 1, **change}
    raises(['knn_error', *match], lambda: knn_error(*args.values()))

# Characteristics: the references, loops over lists

def var(a): m = math.fsum(a)/len(a); return 0. if min(a) == max(a) else math.fsum((x-m)**2 for x in a)/len(a)
def avg(a): a = [x for x in a if not math.isnan(x)]; return math.fsum(a)/len(a) if a else NAN

def slow_pairs(rows, share=0):
    "Of each pair of units with two samples or more where both are positive: |c|, and |c|/√(v v') unless one of them does not vary"
    cs,rs = [],[]
    for i,j in itertools.combinations(range(len(rows[0])), 2):
        both = [(r[i],r[j]) for r in rows if r[i] > 0 and r[j] > 0]
        if len(both) < max(2, share*len(rows)): continue
        a,b = zip(*both)
        ma,mb = math.fsum(a)/len(a),math.fsum(b)/len(b)
        vary = var(a) > 0 and var(b) > 0
        cs.append(abs(math.fsum((p-ma)*(q-mb) for p,q in both)/len(both)) if vary else 0.)
        if vary: rs.append(cs[-1]/math.sqrt(var(a)*var(b)))
    return avg(cs),avg(rs)

def slow_variances(rows, scale=None, share=0):
    res = []
    for i in range(len(rows[0])):
        a = [r[i] for r in rows if r[i] > 0]
        if len(a) >= max(2, share*len(rows)) and (scale is None or scale[i]): res.append(var(a)*(scale[i]**2 if scale else 1))
    return avg(res)

def slow_intra_inter(rows, ys):
    classes = sorted(set(ys))
    means = {k: [avg([r[i] for r,c in zip(rows, ys) if c == k]) for i in range(len(rows[0]))] for k in classes}
    if len(classes) < 2: return NAN
    inter = avg([math.dist(means[a], means[b]) for a,b in itertools.combinations(classes, 2)])
    return avg([math.dist(r, means[k]) for r,k in zip(rows, ys)])/inter if inter > 1e-13*max(abs(v) for r in rows for v in r) else NAN

def svd_rank(z):
    "From the singular values as numpy finds them; a unit that does not vary has none, whatever its mean rounds to"
    a = z.flatten(1).double().numpy() if z.ndim > 1 else z[:,None].double().numpy()
    a = np.where(a.max(0) == a.min(0), 0., a - np.array([math.fsum(c)/len(c) for c in a.T]))
    s = np.linalg.svd(a, compute_uv=False)
    s = s[s > s.max()*max(a.shape)*np.finfo(float).eps]
    return float(np.exp(-sum(v*math.log(v) for v in s/s.sum()))) if len(s) else 0.

ROWS = ['amplitude','covariance','correlation','cw_correlation','variance','normalized_cw_variance','intra_inter','effective_rank']
OF_CLASSES = ['cw_correlation','normalized_cw_variance','intra_inter']
OF_UNITS = ['covariance','correlation','cw_correlation','variance','normalized_cw_variance']          # over the drawn units
def slow_characteristics(z, y, share=0):
    flat = (z.flatten(1) if z.ndim > 1 else z[:,None]).double()
    rows,ys = flat.tolist(),y.flatten().tolist()
    ranges = [max(c)-min(c) for c in zip(*rows)]
    scale = [10/r if r > 0 else 0 for r in ranges]
    parts = [[r for r,c in zip(rows, ys) if c == k] for k in sorted(set(ys))]
    return dict(amplitude=avg([a for r in rows for a in r if a > 0]), covariance=slow_pairs(rows, share)[0], correlation=slow_pairs(rows, share)[1],
                cw_correlation=avg([slow_pairs(p, share)[1] for p in parts]), variance=slow_variances(rows, share=share),
                normalized_cw_variance=avg([slow_variances(p, scale, share) for p in parts]), intra_inter=slow_intra_inter(rows, ys), effective_rank=svd_rank(z))

def relu_like(*shape, seed=0, shift=.3, dtype=D):
    "Correlated features after a ReLU, sparser with a lower `shift`"
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(*shape, generator=g, dtype=D)
    return (z + .6*z.roll(1, 1 if len(shape) > 1 else 0) + torch.randn(shape[1:], generator=g, dtype=D) + shift).relu().to(dtype)

def check_characteristics(z, y, tol=1e-6):
    res,want = characteristics(z, y),slow_characteristics(z, y)
    assert list(res) == ROWS
    for k in ROWS:
        try: rel(res[k], want[k], tol)
        except AssertionError as e: raise AssertionError(f'{k}: {res[k]}, not {want[k]}') from e
    return res

@pytest.mark.parametrize('dtype', [torch.float32,D], ids=plain)
@pytest.mark.parametrize('shift', [-1.5,.3,3.], ids=['sparse','some','dense'])
@pytest.mark.parametrize('shape', [(30,6), (8,12), (7,7), (3,9), (60,3), (15,2,2,2), (25,2)], ids=plain)
def test_characteristics_are_those_of_loops(shape, shift, dtype):
    for seed in range(2):
        z = relu_like(*shape, seed=seed, shift=shift, dtype=dtype)
        y = torch.randint(4, shape[:1], generator=torch.Generator().manual_seed(seed))
        res = check_characteristics(z, y)
        near(intra_inter(z, y), res['intra_inter']); near(effective_rank(z), res['effective_rank'])
        assert list(alone := characteristics(z)) == [k for k in ROWS if k not in OF_CLASSES]          # y=None
        for k in alone: near(alone[k], res[k], 0)

def apart(n=20):
    "Units that are never positive together, two by two"
    z = relu_like(n, 4, shift=2.)+.1; z[::2,0] = z[1::2,1] = z[::2,2] = z[1::2,3] = 0; return z
def put(z, i, v): z = z.clone(); z[:,i] = v; return z
N3 = torch.arange(20)%3
CASES = {
    'one class':               (relu_like(20, 5), torch.full((20,), 4)),
    'classes missing':         (relu_like(20, 5), tensor([0,1,5])[N3]),
    'negative labels':         (relu_like(20, 5), tensor([-7,10**12,0])[N3]),
    'a class of one sample':   (relu_like(20, 5), N3.where(torch.arange(20) > 0, 9)),
    'one sample a class':      (relu_like(20, 5), torch.arange(20)),
    'two samples':             (relu_like(2, 5, shift=4.), tensor([0,1])),
    'two samples of a class':  (relu_like(2, 5, shift=4.), tensor([1,1])),
    'one unit':                (relu_like(20, 1), N3),
    'one unit, flat':          (relu_like(20, 1)[:,0], N3),
    'a dead unit':             (put(relu_like(20, 5), 2, 0.), N3),
    'all dead but one':        (put(relu_like(20, 5), slice(1, None), 0.), N3),
    'a unit once positive':    (put(relu_like(20, 5), 2, F.one_hot(tensor(3), 20).double()), N3),
    'a unit twice positive':   (put(relu_like(20, 5), 2, F.one_hot(tensor([3,6]), 20).sum(0)*tensor(.3)), N3),
    'a constant unit':         (put(relu_like(20, 5), 2, 1/3), N3),
    'a unit of two values':    (put(relu_like(20, 5), 2, torch.arange(20)%2*.7), N3),
    'constant within a class': (put(relu_like(20, 5), 2, .1+N3/7), N3),
    'the same unit twice':     (relu_like(20, 5)[:,[0,1,1,0,2]], N3),
    'never together':          (apart(), N3),
    'constant':                (torch.full((20,5), 1.5), N3),
    'zero':                    (torch.zeros(20, 5), N3),
    'negative':                (-relu_like(20, 5)-1, N3),
    'signed':                  (relu_like(20, 5)-1, N3),
    'small':                   (relu_like(20, 5)*1e-20, N3),
    'large':                   (relu_like(20, 5)*1e15, N3),
    'units of many scales':    (relu_like(20, 5)*tensor([1e-6,1e-3,1.,1e3,1e6]), N3),
    'an outlier':              (relu_like(20, 5) + F.one_hot(tensor(0), 20)[:,None]*1e4, N3),
}
@pytest.mark.parametrize('dtype', [torch.float32,D], ids=plain)
@pytest.mark.parametrize('case', CASES)
def test_characteristics_at_the_edges(case, dtype):
    z,y = CASES[case]
    res = check_characteristics(z.to(dtype), y)
    nan = {k for k in ROWS if math.isnan(res[k])}
    every = {'amplitude','covariance','correlation','cw_correlation','variance','normalized_cw_variance'}
    assert nan == {'one class': {'intra_inter'}, 'two samples of a class': {'intra_inter'}, 'one sample a class': {'cw_correlation','normalized_cw_variance'},
                   'two samples': {'cw_correlation','normalized_cw_variance'}, 'one unit': {'covariance','correlation','cw_correlation'}, 'one unit, flat': {'covariance','correlation','cw_correlation'},
                   'all dead but one': {'covariance','correlation','cw_correlation'}, 'zero': every|{'intra_inter'}, 'negative': every,
                   'constant': {'correlation','cw_correlation','normalized_cw_variance','intra_inter'}}.get(case, set())
    if case == 'one class': near(res['cw_correlation'], res['correlation'])
    if case.startswith('two samples'): near(res['correlation'], 1.); near(res['effective_rank'], 1.)
    if case == 'one sample a class': assert res['intra_inter'] == 0
    if case in ('constant','zero'): assert res['effective_rank'] == 0

def test_units_none_of_which_meet_have_no_covariance():
    z = torch.zeros(20, 3); z[:6,0] = torch.rand(6)+.1; z[6:12,1] = torch.rand(6)+.1; z[11:,2] = torch.rand(9)+.1   # 1 and 2 meet once
    res = check_characteristics(z, N3)
    assert all(math.isnan(res[k]) for k in ('covariance','correlation','cw_correlation')) and res['variance'] > 0

@pytest.mark.parametrize('noise', [1.,.05])
@pytest.mark.parametrize('n,i', [(40,5), (6,9)])
def test_features_on_a_large_offset(noise, n, i):
    "Against a float64 reference on the same float32 values"
    for seed in range(3):
        z = (1e4 + noise*torch.randn(n, i, generator=torch.Generator().manual_seed(seed), dtype=D)).float()
        check_characteristics(z, torch.arange(n)%3)
        z[::2,0] = 0; z[1::3,1] = 0
        check_characteristics(z, torch.arange(n)%3)

@pytest.mark.parametrize('dtype', HALF, ids=plain)
def test_half_precision_features(dtype):
    z = relu_like(20, 2, 3, dtype=dtype)*100                                                          # squares beyond the largest float16
    assert characteristics(z, N3) == characteristics(z.float(), N3)
    check_characteristics(z.float(), N3)

def test_more_samples_than_a_block():
    z,y = relu_like(8200, 3, shift=-.5, seed=3),torch.arange(8200)%2
    y[8195:] = 7                                                                                      # a class of the last block only
    check_characteristics(z, y)

@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('value', [6.,.1,1/3])
def test_a_unit_that_saturates_does_not_vary(seed, value):
    "As a ReLU6 does: where both are positive one unit, or each, has one value only, and no correlation, however many samples there are"
    g = torch.Generator().manual_seed(seed)
    n = 6000
    b = torch.randn(n, generator=g).relu(); lone = b == 0
    a = torch.where(lone, torch.rand(n, generator=g), torch.full((n,), value))
    for z in (torch.stack([a,b], 1), torch.stack([a, torch.where(b > 0, .7*value, b)], 1)):
        res = characteristics(z, torch.zeros(n, dtype=torch.long))
        assert math.isnan(res['correlation']) and math.isnan(res['cw_correlation']), res             # rounding is no variation
        assert res['covariance'] < 1e-12

@pytest.mark.parametrize('share', [.3,.5,.9,1.])
def test_units_that_are_seldom_on_can_be_left_out(share):
    z,y = relu_like(40, 6, seed=1),torch.arange(40)%4
    res,slow = characteristics(z, y, share=share),slow_characteristics(z, y, share)
    for k in ROWS: near(res[k], slow[k])
    for s in (-.1,1.1): raises(['characteristics','share'], lambda: characteristics(z, y, share=s))

def test_characteristics_do_not_depend_on_units_order_scale_or_kind():
    z,y = relu_like(24, 6),torch.arange(24)%4
    res,p = characteristics(z, y),torch.randperm(24)
    for other in (characteristics(z[:,[3,1,5,0,2,4]], y), characteristics(z[p], y[p]), characteristics(z.view(24, 3, 2, 1), y), characteristics(z.as_subclass(TensorImage), y.as_subclass(TensorCategory)),
                  characteristics(z.clone().requires_grad_(), y.int()), characteristics(z, y.tolist()), characteristics(z, y[:,None]), characteristics(z, 3-y), characteristics(z.t().contiguous().t(), y)):
        assert list(other) == ROWS
        for k in ROWS: near(other[k], res[k], 1e-9)
    twice = characteristics(2*z, y)
    for k,times in dict(amplitude=2, covariance=4, correlation=1, cw_correlation=1, variance=4, normalized_cw_variance=1, intra_inter=1, effective_rank=1).items(): near(twice[k], times*res[k], 1e-9)

# More units than are looked at in pairs

@pytest.mark.parametrize('m', [2,4,8])
def test_of_many_units_some_are_drawn(m):
    z,y = relu_like(30, 9),torch.arange(30)%3
    rng = torch.get_rng_state(),np.random.get_state()[1].copy()
    with pytest.warns(UserWarning, match=f'characteristics.*{m} of 9 units'): res = characteristics(z, y, max_units=m)
    with pytest.warns(UserWarning): assert characteristics(z, y, max_units=m) == res                  # always the same
    assert torch.equal(rng[0], torch.get_rng_state()) and (rng[1] == np.random.get_state()[1]).all()  # and nobody's random numbers
    full = slow_characteristics(z, y)
    for k in set(ROWS)-set(OF_UNITS): near(res[k], full[k])                                           # the rest is over all units
    drawn = [c for c in itertools.combinations(range(9), m) if abs(slow_variances(z[:,c].tolist())-res['variance']) < 1e-9]
    assert len(drawn) == 1                                                                            # distinct units are behind it
    want = slow_characteristics(z[:,drawn[0]], y)
    for k in OF_UNITS: near(res[k], want[k])

def test_as_many_units_as_may_be_are_all_looked_at():
    z,y = relu_like(12, 9),torch.arange(12)%3
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert characteristics(z, y, max_units=9) == characteristics(z, y)

# Effective rank and distances of classes alone

def of_spectrum(s, n, i, seed=0):
    "Centred features with the singular values `s`"
    g = torch.Generator().manual_seed(seed)
    u = torch.randn(n, len(s), generator=g, dtype=D); u = torch.linalg.qr(u - u.mean(0))[0]
    return u*torch.as_tensor(s, dtype=D)@torch.linalg.qr(torch.randn(i, len(s), generator=g, dtype=D))[0].T

@pytest.mark.parametrize('shape', [(30,8), (8,30), (20,20), (2,1), (2,40), (50,1), (12,3,2,2), (15,)], ids=plain)
def test_effective_rank_is_that_of_the_svd(shape):
    for seed in range(3):
        for dtype in (torch.float32,D):
            for scale,shift in ((1.,0.), (1e-12,0.), (1e6,5e6), (1.,-2.)):
                z = (scale*torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)+shift).to(dtype)
                rel(effective_rank(z), svd_rank(z))

@pytest.mark.parametrize('n,i', [(60,20), (20,60), (9000,12)], ids=plain)
def test_effective_rank_of_deficient_features(n, i):
    "Rounding must not add up to rank"
    for r in (1,2,5):
        near(effective_rank(of_spectrum([1.]*r, n, i) + 3.), float(r))                                # equal singular values: as many as there are
        g = torch.Generator().manual_seed(r)
        z = (torch.randint(-4, 5, (n,r), generator=g)@torch.randint(-4, 5, (r,i), generator=g))       # whole numbers: float32 is exact
        for dtype in (torch.float32,D): rel(effective_rank(z.to(dtype)), svd_rank(z.double())); assert effective_rank(z.to(dtype)) <= r+1e-6
    s = [3.,1.,.5,.1]
    p = [v/sum(s) for v in s]
    rel(effective_rank(of_spectrum(s, n, i)), math.exp(-sum(v*math.log(v) for v in p)))
    for k,tol in ((6,1e-6), (12,1e-4)):                                                               # the smallest are lost in the squares
        z = of_spectrum([10.**-j for j in range(k)], n, i)
        rel(effective_rank(z), svd_rank(z), tol)
    z = (torch.randn(n, 2, generator=g, dtype=D)@torch.randn(2, i, generator=g, dtype=D)).float()    # and what rounding adds to rank 2
    rel(effective_rank(z), svd_rank(z), 1e-4)

def test_effective_rank_of_rows_and_units_twice():
    z = relu_like(20, 5)
    rel(effective_rank(torch.cat([z,z])), effective_rank(z)); rel(effective_rank(torch.cat([z,z], 1)), effective_rank(z))
    rel(effective_rank(put(z, 0, 0.)), effective_rank(z[:,1:]))

CONSTANTS = [0.,1.,.1,1/3,.7,-2.3,1e4/3,1e-9]
@pytest.mark.parametrize('dtype', [torch.float16,torch.float32,D], ids=plain)
@pytest.mark.parametrize('n', [2,3,7,10,31,1000,20_000])
def test_constant_features_have_no_rank_and_no_distances(n, dtype):
    "A mean that rounds is no variation"
    for c in CONSTANTS:
        z = torch.full((n,3), c, dtype=dtype)
        assert effective_rank(z) == 0, (c,effective_rank(z))                                         # nor 1 for some in float64
        for k in (2,3): assert math.isnan(intra_inter(z, torch.arange(n)%k)), c                      # nor a number

@pytest.mark.parametrize('c', [1e6,1e8])
def test_a_large_constant_unit_hides_nothing(c):
    "A bias that grew: the others are as they were"
    z = torch.cat([torch.full((50,1), c), .01*relu_like(50, 4, dtype=torch.float32)], 1)
    rel(effective_rank(z), effective_rank(z[:,1:]))                                                   # its mean counts for no other

def test_intra_inter_by_hand():
    z = tensor([[0.,0.],[2.,0.],[10.,1.],[10.,-1.]])
    near(intra_inter(z, tensor([0,0,1,1])), 1/9)
    near(intra_inter(z, tensor([5,5,-3,-3])), 1/9)
    assert intra_inter(z, torch.arange(4)) == 0 and math.isnan(intra_inter(z, torch.zeros(4).long()))
    assert math.isnan(intra_inter(tensor([[1.],[-1.],[1.],[-1.]]), tensor([0,0,1,1])))                # the means are the same

def test_classes_that_are_points_and_classes_that_are_not_apart():
    "To within rounding of their means"
    for dtype in (torch.float32,D):
        at = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=D).to(dtype)
        assert 0 <= intra_inter(at.repeat(7, 1)[:33], (torch.arange(35)%5)[:33]) < 1e-12
        z = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=D).to(dtype)
        assert math.isnan(intra_inter(torch.cat([z,z.flip(0)]), torch.arange(100)//50))

def test_many_classes():
    z,y = relu_like(400, 6),torch.randint(150, (400,), generator=torch.Generator().manual_seed(0))
    near(intra_inter(z, y), slow_intra_inter(z.tolist(), y.tolist()))
    for seed in range(2):                                                                             # far from 0, close to each other
        z = (1e4 + torch.randn(60, 5, generator=torch.Generator().manual_seed(seed))).float()
        rel(intra_inter(z, torch.arange(60)%7), slow_intra_inter(z.tolist(), (torch.arange(60)%7).tolist()))

R = relu_like(6, 3)
@pytest.mark.parametrize('name,f', [('characteristics',characteristics), ('intra_inter',intra_inter), ('effective_rank',lambda z, y: effective_rank(z)), ('characteristics',lambda z, y: characteristics(z))],
                         ids=['characteristics','intra_inter','effective_rank','without labels'])
def test_bad_features(name, f):
    for v in (NAN,INF,-INF): raises([name,'1 of 6','NaN'], lambda: f(with_value(R, v), N3[:6]))
    raises([name,'int64'], lambda: f(R.long(), N3[:6])); raises([name,'ndarray'], lambda: f(R.numpy(), N3[:6])); raises([name,'list'], lambda: f(R.tolist(), N3[:6]))
    for n in (0,1): raises([name,'two samples'], lambda: f(R[:n], N3[:n]))
    raises([name], lambda: f(torch.tensor(1.), N3[:1]))

@pytest.mark.parametrize('name,f', [('characteristics',characteristics), ('intra_inter',intra_inter), ('effective_rank',lambda z, y: effective_rank(z))])
def test_features_without_units(name, f): raises([name], lambda: f(torch.zeros(6, 0), N3[:6]))         # the error is not that of `max`

@pytest.mark.parametrize('f', [characteristics,intra_inter])
def test_bad_labels_of_features(f):
    for y in (N3[:5], N3[:7], N3[:6].float(), F.one_hot(N3[:6], 3), [0.5]*6, tensor(1)): raises([f.__name__,'label'], lambda: f(R, y))
    z,y = R.clone(),N3[:6].clone()
    f(z, y)
    assert torch.equal(z, R) and torch.equal(y, N3[:6])                                               # what they are given stays as it is

def test_distance_of_features_that_do_not_compare():
    from latentreg_fastai.metrics import frechet_distance
    raises(['frechet_distance', '3 and 4 units'], lambda: frechet_distance(torch.randn(9, 3), torch.randn(9, 4)))
    raises(['frechet_distance', 'NaN'], lambda: frechet_distance(torch.full((9, 3), math.nan), torch.randn(9, 3)))
