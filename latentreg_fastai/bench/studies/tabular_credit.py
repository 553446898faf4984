"Which regularisers help a `tabular_learner` to tell whether a loan will be paid back, alone and together?"
# 4,454 loans, 9 columns of numbers and 4 of words, two classes (`bench.tables`); a quarter of the rows, drawn once, judges. Dropout and
# weight decay are tuned as the other methods are. `boosting('credit', ...)` of `bench.tables` tunes gradient boosting for comparison.
from fastai.tabular.all import *
from latentreg_fastai.all import *
from latentreg_fastai.bench import Grid
from latentreg_fastai.bench.tables import table_learner

title = 'Loans: a tabular_learner on credit_data'
seeds,combine,budget = 5,True,'30min'
learner = partial(table_learner, name='credit')

def fit(learn, cbs, scale=1): learn.fit_one_cycle(round(10*scale), 1e-3, cbs=cbs)

methods = {
    'dropout':         Grid(DropoutRate, layer='layers', p=(.1,.25,.5)),
    'weight decay':    Grid(WeightDecay, wd=(.1,.3,1.)),                         # fastai's own is 0.01
    'label smoothing': Grid(LabelSmoothingCrossEntropyFlat, eps=(.05,.1,.2)),
    'MixUp':           Grid(ManifoldMixup, layers=[], alpha=(.2,.6,2.)),         # of numbers and embeddings; fastai's takes no words
    'ManifoldMixup':   Grid(ManifoldMixup, alpha=(.2,.6,2.)),
    'VR':              Grid(VarianceRegularizer, classwise=False, weight=(.1,1.,10.)),
    'cw-VR':           Grid(VarianceRegularizer, weight=(.1,1.,10.)),
    'cw-CR':           Grid(CovarianceRegularizer, weight=(1.,10.,100.)),
    'ITRA-c split':    Grid(ITRA, source='split', weight=(.2,.6,1.5)),
    'CenterLoss':      Grid(CenterLoss, weight=(.003,.01,.1)),
    'Phantom':         Grid(PhantomEmbedding, alpha=(.5,1.,3.)),
    'WeightL1':        Grid(WeightL1, weight=(1e-5,1e-4,1e-3))}
