"Which regularisers help a `tabular_learner` to tell the price of a house, alone and together?"
# 2,930 houses, 33 columns of numbers and 40 of words (`bench.tables`); the target is the logarithm of the price, standardised. A quarter of
# the rows, drawn once, judges. Dropout and weight decay are tuned as the other methods are. `boosting('ames', ...)` of `bench.tables` tunes
# gradient boosting for comparison.
from fastai.tabular.all import *
from latentreg_fastai.all import *
from latentreg_fastai.bench import Grid
from latentreg_fastai.bench.tables import table_learner

title = 'Houses: a tabular_learner on ames, regression'
seeds,combine,budget = 5,True,'30min'
learner = partial(table_learner, name='ames')
metric = rmse

def fit(learn, cbs, scale=1): learn.fit_one_cycle(round(20*scale), 3e-3, cbs=cbs)

methods = {
    'dropout':         Grid(DropoutRate, layer='layers', p=(.1,.25,.5)),
    'weight decay':    Grid(WeightDecay, wd=(.1,.3,1.)),                         # fastai's own is 0.01
    'MixUp':           Grid(ManifoldMixup, layers=[], alpha=(.2,.6,2.)),         # of numbers and embeddings; fastai's takes no words
    'ManifoldMixup':   Grid(ManifoldMixup, alpha=(.2,.6,2.)),
    'VR':              Grid(VarianceRegularizer, classwise=False, weight=(.01,.1,1.)),
    'CR':              Grid(CovarianceRegularizer, classwise=False, weight=(.1,1.,10.)),
    'ITRA split':      Grid(ITRA, classwise=False, source='split', weight=(.2,.6,1.5)),
    'ActivationL1':    Grid(ActivationL1, weight=(.001,.01,.1)),
    'WeightL1':        Grid(WeightL1, weight=(1e-5,1e-4,1e-3))}
