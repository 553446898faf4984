"Which callbacks help when a transformer is fine-tuned on few texts?"
# MiniLM (6 layers, 22.6M parameters, all of them trained), and 1,000 articles of AG's News in four classes; every seed draws others of the
# 5,600 that are not test articles. The judge is always the same 2,000 test articles, 500 of each class. All come from the 7,600 of the
# original test file, of which the training part of this data set is no part here. Articles are cut off after 64 tokens. Matrix products are
# in bfloat16 (`Autocast`), for every row alike; figures are measured in float32 after the fit.
from fastai.vision.all import *
from latentreg_fastai.all import *
from latentreg_fastai.papers import agnews_dls,minilm
from latentreg_fastai.bench import Autocast,Grid

title = "MiniLM fine-tuned on 1,000 articles of AG's News"
seeds = 5

def learner(seed):
    dls = agnews_dls(n_train=1000, n_test=2000, bs=32, seed=seed)
    return Learner(dls, minilm(dls.c, attention='eager'), loss_func=CrossEntropyLossFlat(), metrics=error_rate)

class NoValidation(Callback):
    "The judge is asked once, after the fit, not in every epoch"
    def before_validate(self): raise CancelValidException

def fit(learn, cbs, scale=1): learn.fit_one_cycle(round(3*scale), 1e-4, cbs=[*cbs, Autocast('bf16'), NoValidation()])

methods = {
    'label smoothing':       Grid(LabelSmoothingCrossEntropyFlat, eps=(.05,.15)),
    'MixUp of embeddings':   Grid(ManifoldMixup, layers=[], alpha=(.4,2.)),
    'ManifoldMixup':         Grid(ManifoldMixup, alpha=(.4,2.)),                 # embeddings and two of the blocks
    'ManifoldMixup, all':    Grid(ManifoldMixup, layers='all', alpha=(.4,2.)),
    'cw-VR':                 Grid(VarianceRegularizer, weight=(.1,1.)),
    'cw-CR':                 Grid(CovarianceRegularizer, weight=(1.,10.)),
    'ITRA-c split':          Grid(ITRA, source='split', weight=(.2,.6)),
    'CenterLoss':            Grid(CenterLoss, weight=(.003,.03)),
    'Phantom':               Grid(PhantomEmbedding, alpha=(.5,2.))}
