"Comparisons that are known by name: `latentreg bench finetune`"
