"Which regularisers help a `tabular_learner` to tell 32 trees by measures of a leaf, alone and together?"
# 1,907 leaves, 49 columns of numbers and 8 of words, 32 classes (`bench.tables`); four fifths of the rows, drawn once, judge. Dropout and
# weight decay are tuned as the other methods are. `boosting('leaves', ...)` of `bench.tables` tunes gradient boosting for comparison.
from functools import partial
from latentreg_fastai.bench.tables import table_learner
from latentreg_fastai.bench.studies.tabular_credit import methods    # the same for both classifications

title = 'Leaves: a tabular_learner on leaf_id_flavia'
seeds,combine,budget = 5,True,'30min'
learner = partial(table_learner, name='leaves', bs=32)

def fit(learn, cbs, scale=1): learn.fit_one_cycle(round(40*scale), 1e-2, cbs=cbs)
