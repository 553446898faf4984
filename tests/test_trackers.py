"fastai's trackers take the direction of a column from its name: they keep the best epoch by every metric and every term."
from fastai.callback.all import *
import contextlib, io
from common import *

FORGED = [.5,.2,.9,.4]                                                                # the second of four epochs is the best

class Forge(Callback):
    "Says that the column `monitor` had the values `FORGED`, and marks the weights with the epoch"
    order = TrackerCallback.order-1
    def __init__(self, monitor): self.monitor = monitor
    def after_epoch(self):
        values = self.recorder.values[-1]
        values[self.recorder.metric_names.index(self.monitor)-1] = FORGED[self.epoch]
        with torch.no_grad(): next(self.model.parameters()).fill_(self.epoch)

def kept(learn, monitor):
    "The epoch whose weights are in the model"
    return next(learn.model.parameters()).flatten()[0].item()

def as_tracked(make_learn, cbs, monitor, tmp_path):
    learn = make_learn(cbs=cbs(), path=tmp_path)
    with contextlib.redirect_stdout(io.StringIO()): learn.fit(4, 1e-3, cbs=[SaveModelCallback(monitor=monitor), Forge(monitor)])
    assert kept(learn, monitor) == 1, 'SaveModelCallback'
    learn = make_learn(cbs=cbs())
    with contextlib.redirect_stdout(io.StringIO()): learn.fit(4, 1e-3, cbs=[EarlyStoppingCallback(monitor=monitor, patience=1), Forge(monitor)])
    assert len(learn.recorder.values) == 3, 'EarlyStoppingCallback'                    # the third is worse than the second
    learn,seen = make_learn(cbs=cbs()),[]
    lr = Probe(run_valid=False, after_train=lambda l: seen.append(l.opt.hypers[-1]['lr']))
    with contextlib.redirect_stdout(io.StringIO()): learn.fit(4, 1e-3, cbs=[ReduceLROnPlateau(monitor=monitor, patience=1), Forge(monitor), lr])
    close(seen, [1e-3,1e-3,1e-3,1e-4], eps=1e-9)                                      # and so the rate falls after it

METRICS = {'ECE': (ECE,'calibration_error'), 'ECE adaptive': (lambda: ECE(adaptive=True),'adaptive_calibration_error'), 'NLL': (NLL,'nll_loss'), 'Brier': (Brier,'brier_loss')}
@pytest.mark.parametrize('name', METRICS)
def test_trackers_by_metrics(name, tmp_path):
    make,column = METRICS[name]
    assert make().name == column
    as_tracked(partial(new_learner, metrics=make()), list, column, tmp_path)

def test_every_metric_of_the_package_is_here():
    import latentreg_fastai.metrics as m
    mine = {k for k,v in vars(m).items() if k in m.__all__ and isinstance(v, type) and issubclass(v, Metric)}
    assert mine == {'ECE','NLL','Brier'}

@pytest.mark.parametrize('name', CALLBACKS)
def test_trackers_by_terms(name, tmp_path):
    make,make_learn = CALLBACKS[name][0],learner_of(name)
    learn = make_learn(cbs=make())
    terms = [c.term_name for c in learn.cbs if isinstance(c, TermCallback)]
    assert all('loss' in t or 'error' in t for t in terms)
    for t in terms: as_tracked(make_learn, lambda: [make()], t, tmp_path)

class Mine(LatentCallback):
    def penalty(self, z, *yb): return z.square().mean()
class Named(Mine):
    column = 'size'
class Says(Mine):
    column = 'size_error'
class Better(Mine):
    column,is_better_low = 'spread',False

@pytest.mark.parametrize('cls,name', [(Mine,'mine_loss'), (Named,'size_loss'), (Says,'size_error'), (Better,'spread')])
def test_a_users_own_term(cls, name, tmp_path):
    learn = new_learner(cbs=[cls(),cls()])
    assert [c.term_name for c in learn.cbs if isinstance(c, TermCallback)] == [name,f'{name}_2']
    learn.fit(1, 1e-3)
    assert learn.recorder.metric_names[4:6] == [name,f'{name}_2'] and list(learn.recorder.terms) == [name,f'{name}_2']
    if cls is not Better: as_tracked(new_learner, lambda: [cls()], name, tmp_path); return
    learn = new_learner(cbs=cls(), path=tmp_path)
    with contextlib.redirect_stdout(io.StringIO()): learn.fit(4, 1e-3, cbs=[SaveModelCallback(monitor=name), Forge(name)])
    assert kept(learn, name) == 2                                                     # the highest

def test_metrics_of_the_bench_and_of_the_autoencoder(monkeypatch):
    "What this package gives a learner of its own is named so, too"
    from latentreg_fastai.papers.tasks import Classification
    learn = Classification(None, None).learner(new_learner().dls, net())
    assert [m.name for m in learn.metrics] == ['error_rate','cross_entropy_loss','calibration_error','brier_loss']
    seen = []
    monkeypatch.setattr(Learner, 'fit_one_cycle', lambda self, *a, **k: seen.extend(m.name for m in self.metrics))
    fit_vae(new_learner().dls, 1, show=0)
    assert seen == ['mse_loss']
