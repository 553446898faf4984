"Callbacks beside each other: the page that says which pairs go together holds what a run gives, and what it says of them is so."
import pytest
from common import *
import pairs as page

ALL = [(p, swap) for swap in (False,True) for p in page.pairs()]

@pytest.mark.grid('pair,swap', ALL, every=5, always=lambda c: not c[1], ids=plain)
def test_pairs(pair, swap): assert page.outcome(*pair, swap) == page.written_outcomes()[pair]

def test_the_page_is_whole():
    assert page.written('table') == page.table(page.written_outcomes()) and page.written('notes') == page.notes()
    said = ' '.join(page.written_outcomes().values())
    assert all(f'✗{i+1}' in said for i in range(len(page.REASONS))) and all(f'✓{chr(97+i)}' in said for i in range(len(page.NOTES)))

# What it says

@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_partners_labels_are_disturbed_too(mix):
    "The mixed labels are of the same, disturbed, batch"
    x,y = data()[0].expand(-1,3,8,8).contiguous(),data()[1]
    learn,seen = new_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(192,3)), dls=tensor_dls((x,y), (x,y), bs=8, device='cpu')),[]
    m,d = mix(),DisturbLabel(1.)
    def look(l): seen.append((sorted(l.yb[0].tolist()), sorted(m.yb1[0].tolist()), was.pop()))
    was = []
    for cbs in ([m,d], [d,m]):
        learn.fit(4, 1e-3, cbs=[*cbs, Probe(order=-3, run_valid=False, before_batch=lambda l: was.append(sorted(l.y.tolist()))), Probe(order=30, run_valid=False, before_batch=look)])
    assert len(seen) == 24 and all(a == b for a,b,_ in seen) and sum(a != w for a,_,w in seen) > 15
    learn.fit(1, 1e-3, cbs=d)
    assert d.order == DisturbLabel.order                 # only beside them

@pytest.mark.parametrize('cls', [VarianceRegularizer, CenterLoss])
def test_class_wise_terms_beside_unlabelled_rows(cls):
    "They see the labelled rows alone"
    class Seen(cls):
        def penalty(self, z, *yb): rows.append((len(z), len(yb[0]))); return super().penalty(z, *yb)
    rows = []
    new_learner().fit(1, 1e-3, cbs=[SemiSupervisedMixup(UNLABELED, rampup=0.), Seen(1.)])
    assert rows == [(8,8)]*3

@pytest.mark.parametrize('other', [lambda: DisturbLabel(1.), MixUp, lambda: VarMixup(VAE), ManifoldMixup])
def test_the_monitor_measures_the_batch_as_it_was(other):
    monitor,seen,was = LatentMonitor(1),[],[]
    def look(l): seen.append((monitor._now[0][0].clone(), monitor._now[1].clone()))
    learn = new_learner()
    learn.fit(1, 1e-3, cbs=[other(), monitor, Probe(order=-9, run_valid=False, before_batch=lambda l: was.append((l.x.clone(), l.y.clone()))), Probe(order=30, run_valid=False, after_pred=look)])
    assert len(seen) == 3 and all(torch.equal(*ab) for s,w in zip(seen, was) for ab in zip(s, w))

# A loss that the model computes itself

class Answer(dict):
    "As `ModelOutput`"
    def __getattr__(self, k):
        try: return self[k]
        except KeyError: raise AttributeError(k) from None

class LikeHuggingFace(nn.Module):
    def __init__(self): super().__init__(); self.body = nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.ReLU(), nn.Linear(8,3))
    def forward(self, b, labels=None):
        x,labels = (b['x'],b.get('labels', labels)) if isinstance(b, dict) else (b,labels)
        logits = self.body(x)
        return Answer(loss=F.cross_entropy(logits, labels), logits=logits) if labels is not None else Answer(logits=logits)

def own_loss_learner(how, loss_func):
    x,y = data()
    items = [({'x': a, 'labels': b} if how == 'dict' else {'x': a},b) for a,b in zip(x, y)] if how != 'second input' else [(a,b,b) for a,b in zip(x, y)]
    dls = items_dls(items) if how != 'second input' else tensor_dls(TensorItems(x, y, y, n_inp=2), TensorItems(x, y, y, n_inp=2), bs=8, device='cpu')
    return new_learner(model=LikeHuggingFace(), dls=dls, loss_func=loss_func, metrics=[])

TURNED_AWAY = {'ManifoldMixup': lambda: ManifoldMixup(layers='body.2', input_mixup=False), 'ManifoldMixup per item': lambda: ManifoldMixup(layers='body.2', input_mixup=False, per_item=True), 'DisturbLabel': lambda: DisturbLabel(.5),
               'Phantom': lambda: PhantomEmbedding(layer='body.2'), 'Phantom k=3': lambda: PhantomEmbedding(3, layer='body.2'), 'Phantom batch': lambda: PhantomEmbedding(source='batch', layer='body.2'), 'ITRA': lambda: ITRA(layer='body.2', warmup=0.)}
GO_WITH_IT = {'cw-VR': lambda: VarianceRegularizer(layer='body.2', n_classes=3), 'CenterLoss': lambda: CenterLoss(layer='body.2', n_classes=3), 'ITRA split': lambda: ITRA(source='split', layer='body.2', warmup=0., n_classes=3), 'ITRA queue': lambda: ITRA(source='queue', layer='body.2', warmup=0., n_classes=3), 'WeightL1': WeightL1}
HAND_ON = {'handed on': lambda out,y,reduction='mean': out.loss, 'scaled': lambda out,y,reduction='mean': 2*out['loss'].mean()}

@pytest.mark.parametrize('loss', HAND_ON)
@pytest.mark.parametrize('how', ['dict','second input'])
@pytest.mark.parametrize('name', TURNED_AWAY)
def test_a_loss_that_the_model_computes(name, how, loss):
    learn = own_loss_learner(how, HAND_ON[loss])
    if name in ('Phantom k=3','Phantom batch') and how == 'second input': return   # the model itself fails on as many labels as there were rows
    if name == 'DisturbLabel': learn.dls.c = 3
    refused([TURNED_AWAY[name]().name.title().replace('_', '').replace('Itra', 'ITRA'), 'the model compute', 'loss'], learn, TURNED_AWAY[name]())

@pytest.mark.parametrize('how', ['dict','second input'])
@pytest.mark.parametrize('name', GO_WITH_IT)
def test_beside_a_loss_that_the_model_computes(name, how): own_loss_learner(how, HAND_ON['handed on']).fit(1, 1e-3, cbs=GO_WITH_IT[name]())

@pytest.mark.parametrize('name', [*TURNED_AWAY, *GO_WITH_IT])
def test_a_loss_of_the_models_predictions(name):
    "As the page says: the labels are no input, and the loss is one of the predictions"
    learn = own_loss_learner('no labels', lambda out,y,reduction='mean': F.cross_entropy(out.logits, y, reduction=reduction))
    learn.dls.c = 3
    learn.fit(1, 1e-3, cbs=(TURNED_AWAY|GO_WITH_IT)[name]())

def test_predictions_of_no_dimension_that_are_no_loss():
    "A model that gives a number of its own beside the predictions, as a temperature, has no loss of its own"
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.body,self.t = LikeHuggingFace().body,nn.Parameter(torch.ones(()))
        def forward(self, x): return self.body(x),self.t*1.
    for cb in (ManifoldMixup(layers='body.2', input_mixup=False), DisturbLabel(.1), PhantomEmbedding(layer='body.2')):
        new_learner(model=Two(), loss_func=lambda p,y: F.cross_entropy(p[0], y), metrics=[]).fit(1, 1e-3, cbs=cb)
