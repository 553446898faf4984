"Semi-supervised mixup: both losses by hand, pseudo-labels, the ramp, any loader, going on."
import pytest
from common import *

LINEAR = lambda: nn.Sequential(nn.Linear(6,5), nn.Linear(5,4), nn.Linear(4,3))
def few_and_many(n=24, m=40, bs=8, ubs=10):
    g = torch.Generator().manual_seed(0)
    x,y,u = torch.randn(n, 6, generator=g),torch.arange(n) % 3,torch.randn(m, 6, generator=g)
    return tensor_dls((x,y), (x,y), bs=bs, device='cpu'),u

@pytest.mark.parametrize('layers', [None,[],['0'],['1']])
@pytest.mark.parametrize('ubs', [8,10])
def test_semisup_by_hand(layers, ubs):
    "Both losses and the gradients of their sum, Algorithms 1 to 3: on a linear network mixing anywhere is mixing the inputs"
    dls,u = few_and_many()
    learn = new_learner(model=LINEAR(), dls=dls)
    cb,kept,sites = SemiSupervisedMixup(DataLoader(u, bs=ubs, shuffle=True, num_workers=0), alpha_labeled=1., weight=3., rampup=0., layers=layers),[],set()
    def before(l):
        (xu,),(lam2,s2,site) = cb.rows.inputs,cb._second
        pseudo = l.model(xu).softmax(1).detach()
        pred = l.model(mixed(l.x, cb.lam, cb.shift))
        partner = torch.stack([l.y[(i-cb.shift) % len(l.y)] for i in range(len(l.y))])
        labelled = cb.lam*F.cross_entropy(pred, l.y) + (1-cb.lam)*F.cross_entropy(pred, partner)
        diff = l.model(mixed(xu, lam2, s2)).softmax(1) - mixed(pseudo, lam2, s2)
        loss = labelled + 3*sum((diff[i]**2).sum() for i in range(len(diff)))/diff.numel()
        kept.append((labelled.item(), loss, grads(loss, l.model)))
        sites.add((str(cb.site),str(site)))
    def after(l):
        labelled,loss,gs = kept.pop()
        close(l.loss.item(), labelled, eps=1e-4)          # what fastai shows is the labelled loss
        as_by_hand(l, loss, gs)
    learn.fit(10, 1e-2, cbs=[cb, Probe(order=20, run_valid=False, before_batch=before), Probe(order=20, run_valid=False, after_backward=after)])
    there = {None: {'input','0','1'}, (): {'input'}}.get(layers if layers is None else tuple(layers), {'input',*(layers or ())})
    assert {a for a,_ in sites} == {b for _,b in sites} == there and len(sites) == len(there)**2

def test_pseudo_labels_are_of_the_model_in_evaluation_mode():
    "Of unmixed rows, without gradients; modes and running statistics stay, no random number is drawn"
    cb,seen = SemiSupervisedMixup(UNLABELED, rampup=0.),[]
    learn = new_learner()
    def look(l):
        before,modes = module_state(l.model),random_state()
        got = cb.pseudo_labels()
        clean = net(); clean.load_state_dict(l.model.state_dict()); clean.eval()
        assert same_state(module_state(l.model), before) and random_state()[:2] == modes[:2]
        seen.append(torch.equal(got, clean(cb.rows.inputs[0]).softmax(1)) and not got.requires_grad)
    def quiet(l):
        with no_random(): look(l)
    learn.fit(2, 1e-2, cbs=[cb, Probe(run_valid=False, after_loss=quiet)])
    assert seen == [True]*6

def test_the_ramp():
    "exp(−5(1−t/.4)²) up to .4 of training, then 1, times the weight or its schedule"
    for rampup in (.4, .1, 1., 0.):
        learn,cb,got = new_learner(),SemiSupervisedMixup(UNLABELED, weight=lambda t: 2 + t, rampup=rampup),[]
        learn.fit(4, 1e-3, cbs=[cb, Probe(order=0, run_valid=False, after_loss=lambda l: got.append((l.train_iter/12, cb.weight_now)))])
        for t,w in got: close(w, (2 + t)*(1. if rampup == 0 or t >= rampup else math.exp(-5*(1 - t/rampup)**2)), eps=1e-9)
        assert len(got) == 12
    assert abs(SemiSupervisedMixup(UNLABELED).rampup - .4) < 1e-9

def unlabeled_loaders():
    x,y = data(20, seed=3)
    pairs,ds = list(zip(x, y)),torch.utils.data.TensorDataset(x, y)
    return {'TensorDL': TensorDL((x,y), bs=8, shuffle=True), 'TfmdDL': TfmdDL(pairs, bs=8, shuffle=True, num_workers=0), 'fastai DataLoader': DataLoader(pairs, bs=8, shuffle=True, num_workers=0),
            'torch': torch.utils.data.DataLoader(ds, 8, shuffle=True), 'torch, generator': torch.utils.data.DataLoader(ds, 8, shuffle=True, generator=torch.Generator().manual_seed(3)),
            'without targets': torch.utils.data.DataLoader(x, 8, shuffle=True), 'a list': [x[:8],x[8:16]], 'a list of tuples': [(x[:8],)], 'drop_last': TensorDL((x,y), bs=8, shuffle=True, drop_last=True)}
@pytest.mark.parametrize('kind', unlabeled_loaders())
def test_any_loader_will_do(kind):
    "It restarts when it ends, goes on from epoch to epoch, gives all of its samples, and is left as it was"
    res = []
    for _ in range(2):
        dl = unlabeled_loaders()[kind]
        learn,seen = new_learner(),[]
        if hasattr(dl, 'rng'): dl.rng.seed(5)
        states = getattr(dl, 'rng', None) and dl.rng.getstate(), getattr(dl, 'generator', None) is not None and dl.generator.get_state().tolist()
        cb = SemiSupervisedMixup(dl, rampup=0.)
        learn.fit(4, 1e-2, cbs=[cb, Probe(order=20, run_valid=False, before_batch=lambda l: seen.append(cb.rows.inputs[0].clone()))])
        assert len(seen) == 12 and (getattr(dl, 'rng', None) and dl.rng.getstate(), getattr(dl, 'generator', None) is not None and dl.generator.get_state().tolist()) == states
        res.append((seen,weights(learn)))
    assert all(map(torch.equal, *[r[0] for r in res])) and same(res[0][1], res[1][1])
    rows = lambda seen: Counter(round(float(r.sum()), 4) for t in seen for r in t)
    if kind not in ('a list','a list of tuples','drop_last'):
        first,second = rows(res[0][0][:3]),rows(res[0][0][3:6])
        assert len(first) == 20 and set(first.values()) == {1} and first == second and not torch.equal(res[0][0][0], res[0][0][3])   # each once a pass, in another order

def test_it_can_be_copied_and_pickled_after_a_fit():
    "A copy goes on from the same unlabelled batch; a pickle, which `learn.export` writes too, holds no data"
    learn = new_learner(cbs=SemiSupervisedMixup(unlabeled_loaders()['TensorDL'], rampup=0.))
    learn.fit(1, 1e-2)
    import pickle
    twin = deepcopy(learn.semi_supervised_mixup)
    assert isinstance(twin.unlabeled, TensorDL) and twin.state_dict() == learn.semi_supervised_mixup.state_dict() and twin.state_dict()['place']['drawn'] == 3
    alone = pickle.loads(pickle.dumps(learn.semi_supervised_mixup))
    assert repr(alone.unlabeled) == 'left out, being data' and alone.alpha_unlabeled == 2.

def test_resumed_within_a_pass(tmp_path):
    "The unlabelled loader goes on where it was: 3 batches an epoch, 5 a pass"
    make = lambda: SemiSupervisedMixup(TensorDL(data(20, seed=3), bs=4, shuffle=True), rampup=0.)
    whole,seen = [],[]
    look = lambda cb,to: Probe(order=20, run_valid=False, before_batch=lambda l: to.append(cb.rows.inputs[0].clone()))
    cb = make()
    new_learner(path=tmp_path).fit(4, 1e-2, cbs=[cb, look(cb, whole)])
    new_learner(path=tmp_path).fit(4, 1e-2, cbs=[make(), TrainingSaver('run'), Cut()])
    learn,cb = new_learner(path=tmp_path, seed=9),make()
    learn.load_training('run', cbs=cb).fit(4, 1e-2, cbs=[cb, look(cb, seen)], start_epoch=2)
    assert len(seen) == 6 and all(map(torch.equal, whole[6:], seen))

class Silent(torch.utils.data.IterableDataset):
    def __iter__(self): return iter(())

@pytest.mark.parametrize('bad,match', [(lambda: [], ['is empty']), (lambda: torch.utils.data.DataLoader(Silent()), ['is empty']), (lambda: TensorDL((data()[0][:4],data()[1][:4]), bs=8, drop_last=True), ['is empty']),
    (lambda: TensorDL((torch.randn(20, 1, 9, 9),torch.zeros(20).long()), bs=8), ['(1, 9, 9)', '(1, 8, 8)', 'both must be alike']), (lambda: TensorDL((torch.randn(20, 3, 8, 8),torch.zeros(20).long()), bs=8), ['(3, 8, 8)'])], ids=['list','stream','drop_last','size','channels'])
def test_unlabeled_data_that_cannot_do(bad, match):
    learn,before = new_learner(),weights(new_learner())
    raises(['SemiSupervisedMixup', *match], lambda: learn.fit(1, 1e-2, cbs=SemiSupervisedMixup(bad(), rampup=0.)))
    assert same(weights(learn), before) and not hooks(learn.model)

def test_a_training_loader_without_labels():
    "The two loaders mixed up"
    x,y = data()
    learn = new_learner(dls=DataLoaders(TfmdDL([(t,) for t in x], bs=8, n_inp=1), TfmdDL(list(zip(x,y)), bs=8), device='cpu'))
    raises(['SemiSupervisedMixup', 'no targets', 'semisup_dls'], lambda: learn.fit(1, 1e-2, cbs=SemiSupervisedMixup(UNLABELED)))

def test_penalties_see_labelled_rows_alone():
    "Beside it a penalty looks at the mixed rows of the batch and not at the others"
    learn,seen = new_learner(),[]
    class Rows(LatentCallback):
        def penalty(self, z, *yb): seen.append((len(z), len(yb[0]))); return z.square().mean()
    learn.fit(1, 1e-2, cbs=[Rows(.1), SemiSupervisedMixup(UNLABELED, rampup=0.)])
    assert seen == [(8,8)]*3

def targets_of(kind, n=24):
    g = torch.Generator().manual_seed(7)
    return {'labels': torch.arange(n)%3, 'shares': torch.rand(n, 3, generator=g).softmax(1), 'several': (torch.rand(n, 3, generator=g) < .4).float(), 'numbers': torch.randn(n, 3, generator=g),
            'number': torch.randn(n, 1, generator=g), 'yes or no': (torch.rand(n, 1, generator=g) < .5).float(), 'flat': torch.randn(n, generator=g)}[kind]

class ClassLoss(nn.Module):
    def forward(self, pred, y): return F.cross_entropy(pred, y)
SOFTMAX,SIGMOID,ITSELF = lambda t: t.exp()/t.exp().sum(1, keepdim=True), lambda t: 1/(1 + (-t).exp()), lambda t: t
READINGS = [('labels', CrossEntropyLossFlat, SOFTMAX), ('labels', nn.CrossEntropyLoss, SOFTMAX), ('labels', lambda: F.cross_entropy, SOFTMAX), ('labels', lambda: partial(F.cross_entropy, label_smoothing=.1), SOFTMAX),
            ('labels', lambda: lambda p,y: F.cross_entropy(p, y), SOFTMAX), ('labels', ClassLoss, SOFTMAX), ('labels', lambda: BaseLoss(nn.CrossEntropyLoss), SOFTMAX), ('shares', nn.CrossEntropyLoss, SOFTMAX),
            ('several', nn.BCEWithLogitsLoss, SIGMOID), ('several', BCEWithLogitsLossFlat, SIGMOID), ('several', lambda: F.binary_cross_entropy_with_logits, SIGMOID), ('yes or no', nn.BCEWithLogitsLoss, SIGMOID),
            ('numbers', nn.MSELoss, ITSELF), ('numbers', MSELossFlat, ITSELF), ('number', nn.MSELoss, ITSELF), ('number', nn.SmoothL1Loss, ITSELF), ('number', lambda: F.mse_loss, ITSELF), ('flat', nn.MSELoss, ITSELF)]
def regressor(y): return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, y.shape[1] if y.ndim > 1 and y.is_floating_point() else 1 if y.is_floating_point() else 3), *[nn.Flatten(0)]*(y.ndim == 1 and y.is_floating_point()))

@pytest.mark.parametrize('kind,loss,reading', READINGS, ids=plain)
def test_what_is_compared_is_what_the_loss_reads(kind, loss, reading):
    "Probabilities of classes, of each label by itself, or the numbers of a regression: against a loop over rows"
    (_,u),y,seen = few_and_many(),targets_of(kind),[]
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
    learn = new_learner(model=regressor(y), dls=tensor_dls((x,y), (x,y), bs=8, device='cpu'), loss_func=loss(), metrics=[])
    cb = SemiSupervisedMixup(DataLoader(u, bs=8, num_workers=0), rampup=0.)
    def by_hand(l):
        (xu,),(lam,s,_),m = cb.rows.inputs,cb._second,copy_of(l)
        now,then = reading(m(mixed(xu, lam, s))),mixed(reading(m(xu)), lam, s)
        want = sum((a - b).square().sum() for a,b in zip(now, then))/now.numel()
        close(cb.term.item(), want.item(), eps=1e-5)
        seen.append(want.item())
    def fit(l): object.__setattr__(l, 'twin', deepcopy(l.model))
    learn.fit(2, 1e-2, cbs=[cb, Probe(order=-9, run_valid=False, before_fit=fit, before_batch=lambda l: object.__setattr__(l, 'was', weights(l))), Probe(run_valid=False, after_loss=by_hand)])
    assert len(seen) == 6 and (reading is ITSELF or min(seen) > 0)   # on a linear network numbers are always consistent

def test_a_loss_that_does_not_say_what_it_reads():
    y,x = targets_of('several'),torch.randn(24, 6)
    loss = lambda p,y: F.binary_cross_entropy_with_logits(p, y)
    learn = new_learner(model=regressor(y), dls=tensor_dls((x,y), (x,y), bs=8, device='cpu'), loss_func=loss, metrics=[])
    make = lambda: SemiSupervisedMixup(DataLoader(few_and_many()[1], bs=8, num_workers=0), rampup=0.)
    refused(['SemiSupervisedMixup', '`activation`', 'torch.sigmoid'], learn, make())
    loss.activation = torch.sigmoid                      # as the message says
    learn.fit(1, cbs=make())
    assert min(finite(learn, 'consistency_loss')[1]) > 0

@pytest.mark.parametrize('layers', [None,[],['0']])
def test_without_weight_the_labelled_rows_are_still_mixed(layers):
    "A weight of 0 leaves Manifold Mixup of the labelled rows; on a linear network that is Input Mixup"
    dls,u = few_and_many()
    learn,kept,n = new_learner(model=LINEAR(), dls=dls),[],[]
    cb = SemiSupervisedMixup(DataLoader(u, bs=8, num_workers=0), weight=0, alpha_labeled=1., layers=layers)
    def before(l):
        pred,partner = l.model(mixed(l.x, cb.lam, cb.shift)),torch.stack([l.y[(i-cb.shift) % len(l.y)] for i in range(len(l.y))])
        loss = cb.lam*F.cross_entropy(pred, l.y) + (1-cb.lam)*F.cross_entropy(pred, partner)
        kept.append((loss, grads(loss, l.model)))
    def after(l): as_by_hand(l, *kept.pop()); n.append(1)
    learn.fit(2, 1e-2, cbs=[cb, Probe(order=20, run_valid=False, before_batch=before), Probe(order=20, run_valid=False, after_backward=after)])
    assert len(n) == 6 and all(map(math.isnan, learn.recorder.terms['consistency_loss']))
