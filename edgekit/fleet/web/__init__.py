"""What the page looks like: templates, charts and words; it knows neither HTTP nor who asks.

drawing   templates to HTML: a whole page, or its parts that change while somebody looks
wording   times, sizes and states as people read them
cells     the map: every device a small cell, however many there are
charts    one device over time
bars      a stage of a rollout, a guard beside its limit
"""
