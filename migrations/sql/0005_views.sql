-- The attributes that products are tagged with, under each model.
CREATE VIEW catvec.tag_attributes AS
SELECT a.attribute, m.name AS model, m.state = 'active' AS is_active, a.labels, a.threshold, a.temperature, a.created_at,
       a.attribute_id
  FROM catvec_store.tag_attributes a
  JOIN catvec_store.models m ON m.model_id = a.model_id
 WHERE a.is_current;

-- What has left the catalog since is left out at once.
CREATE VIEW catvec.product_tags AS
SELECT t.product_id, a.attribute, t.label, t.probability, m.name AS model, m.state = 'active' AS is_active
  FROM catvec_store.product_tags t
  JOIN catvec_store.tag_attributes a ON a.attribute_id = t.attribute_id
  JOIN catvec_store.models m ON m.model_id = a.model_id
  JOIN catvec_store.products p ON p.product_id = t.product_id
 WHERE a.is_current
   AND p.active;

-- The bare rows, for catvec.filter_condition: every join here would be done for each product that is looked at.
CREATE VIEW catvec.tag_rows AS
SELECT attribute_id, label, product_id
  FROM catvec_store.product_tags;
