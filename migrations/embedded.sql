CREATE TABLE admin_sessions (
	digest TEXT NOT NULL, 
	user TEXT DEFAULT '' NOT NULL, 
	created_at BIGINT NOT NULL, 
	seen_at BIGINT NOT NULL, 
	expires_at BIGINT NOT NULL, 
	PRIMARY KEY (digest)
);

CREATE TABLE admin_users (
	name TEXT NOT NULL, 
	role TEXT DEFAULT '' NOT NULL, 
	password_hash TEXT DEFAULT '' NOT NULL, 
	created_at BIGINT NOT NULL, 
	disabled_at BIGINT, 
	PRIMARY KEY (name)
);

CREATE TABLE agent_intensity_metrics (
	id INTEGER NOT NULL, 
	project TEXT DEFAULT '' NOT NULL, 
	agent TEXT DEFAULT '' NOT NULL, 
	creation FLOAT NOT NULL, 
	execution FLOAT NOT NULL, 
	combined FLOAT NOT NULL, 
	runs BIGINT DEFAULT '0' NOT NULL, 
	source TEXT DEFAULT '' NOT NULL, 
	metrics TEXT DEFAULT '' NOT NULL, 
	current BOOLEAN NOT NULL, 
	measured_at BIGINT NOT NULL, 
	measured_by TEXT DEFAULT '' NOT NULL, 
	PRIMARY KEY (id)
);

CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

INSERT INTO "alembic_version" VALUES('0005');

CREATE TABLE api_keys (
	id TEXT NOT NULL, 
	name TEXT DEFAULT '' NOT NULL, 
	project TEXT DEFAULT '' NOT NULL, 
	digest TEXT NOT NULL, 
	old_digest TEXT, 
	old_until BIGINT, 
	prefix TEXT DEFAULT '' NOT NULL, 
	admin BOOLEAN NOT NULL, 
	role TEXT DEFAULT '' NOT NULL, 
	workflow TEXT DEFAULT '' NOT NULL, 
	agent TEXT DEFAULT '' NOT NULL, 
	allowed_models TEXT DEFAULT '' NOT NULL, 
	limits TEXT DEFAULT '' NOT NULL, 
	created_at BIGINT NOT NULL, 
	created_by TEXT DEFAULT '' NOT NULL, 
	expires_at BIGINT, 
	revoked_at BIGINT, tags TEXT DEFAULT '' NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (digest), 
	UNIQUE (old_digest)
);

CREATE TABLE audit_events (
	id INTEGER NOT NULL, 
	at BIGINT NOT NULL, 
	project TEXT DEFAULT '' NOT NULL, 
	actor TEXT DEFAULT '' NOT NULL, 
	action TEXT DEFAULT '' NOT NULL, 
	target TEXT DEFAULT '' NOT NULL, 
	run TEXT DEFAULT '' NOT NULL, 
	request_id TEXT DEFAULT '' NOT NULL, 
	detail TEXT DEFAULT '' NOT NULL, 
	PRIMARY KEY (id)
);

CREATE TABLE budgets (
	id TEXT NOT NULL, 
	project TEXT, 
	scope TEXT DEFAULT '' NOT NULL, 
	"match" TEXT DEFAULT '' NOT NULL, 
	tokens BIGINT, 
	nano_usd BIGINT, 
	requests BIGINT, 
	window TEXT DEFAULT '' NOT NULL, 
	on_pressure TEXT DEFAULT '' NOT NULL, 
	hold TEXT DEFAULT '' NOT NULL, 
	on_outage TEXT DEFAULT '' NOT NULL, 
	mode TEXT DEFAULT '' NOT NULL, 
	timezone TEXT DEFAULT '' NOT NULL, 
	wait_ms BIGINT DEFAULT '0' NOT NULL, 
	updated_at BIGINT NOT NULL, 
	updated_by TEXT DEFAULT '' NOT NULL, 
	PRIMARY KEY (id)
);

CREATE TABLE control_versions (
	name TEXT NOT NULL, 
	version BIGINT DEFAULT '0' NOT NULL, 
	value TEXT DEFAULT '' NOT NULL, 
	PRIMARY KEY (name)
);

INSERT INTO "control_versions" VALUES('settings',1,'');

INSERT INTO "control_versions" VALUES('keys',1,'');

INSERT INTO "control_versions" VALUES('workflows',1,'');

INSERT INTO "control_versions" VALUES('budgets',1,'');

INSERT INTO "control_versions" VALUES('agents',1,'');

CREATE TABLE intent_cache (
	"key" TEXT NOT NULL, 
	intent TEXT DEFAULT '' NOT NULL, 
	confidence FLOAT NOT NULL, 
	source TEXT DEFAULT '' NOT NULL, 
	reasoning TEXT DEFAULT '' NOT NULL, 
	created_at BIGINT NOT NULL, 
	expires_at BIGINT NOT NULL, 
	PRIMARY KEY ("key")
);

CREATE TABLE run_steps (
	project TEXT NOT NULL, 
	run TEXT NOT NULL, 
	step TEXT NOT NULL, 
	position INTEGER DEFAULT '0' NOT NULL, 
	intent TEXT DEFAULT '' NOT NULL, 
	confidence FLOAT, 
	intent_source TEXT DEFAULT '' NOT NULL, 
	tier TEXT DEFAULT '' NOT NULL, 
	model TEXT DEFAULT '' NOT NULL, 
	allocation_tokens BIGINT, 
	hard_limit_tokens BIGINT, 
	"plan" TEXT DEFAULT '' NOT NULL, 
	first_at BIGINT, 
	last_at BIGINT, 
	calls BIGINT DEFAULT '0' NOT NULL, 
	refused BIGINT DEFAULT '0' NOT NULL, 
	errors BIGINT DEFAULT '0' NOT NULL, 
	input_tokens BIGINT DEFAULT '0' NOT NULL, 
	output_tokens BIGINT DEFAULT '0' NOT NULL, 
	total_tokens BIGINT DEFAULT '0' NOT NULL, 
	cost_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	requests BIGINT DEFAULT '0' NOT NULL, 
	saved_tokens BIGINT DEFAULT '0' NOT NULL, 
	saved_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	overrun_tokens BIGINT DEFAULT '0' NOT NULL, 
	overrun_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	PRIMARY KEY (project, run, step)
);

CREATE TABLE runs (
	project TEXT NOT NULL, 
	run TEXT NOT NULL, 
	workflow TEXT DEFAULT '' NOT NULL, 
	agent TEXT DEFAULT '' NOT NULL, 
	user TEXT DEFAULT '' NOT NULL, 
	parent_run TEXT DEFAULT '' NOT NULL, 
	state TEXT DEFAULT '' NOT NULL, 
	first_at BIGINT NOT NULL, 
	last_at BIGINT NOT NULL, 
	completed_at BIGINT, 
	"plan" TEXT DEFAULT '' NOT NULL, 
	metrics TEXT DEFAULT '' NOT NULL, 
	calls BIGINT DEFAULT '0' NOT NULL, 
	refused BIGINT DEFAULT '0' NOT NULL, 
	errors BIGINT DEFAULT '0' NOT NULL, 
	input_tokens BIGINT DEFAULT '0' NOT NULL, 
	output_tokens BIGINT DEFAULT '0' NOT NULL, 
	total_tokens BIGINT DEFAULT '0' NOT NULL, 
	cost_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	requests BIGINT DEFAULT '0' NOT NULL, 
	saved_tokens BIGINT DEFAULT '0' NOT NULL, 
	saved_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	overrun_tokens BIGINT DEFAULT '0' NOT NULL, 
	overrun_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	PRIMARY KEY (project, run)
);

CREATE TABLE settings_history (
	id INTEGER NOT NULL, 
	"key" TEXT DEFAULT '' NOT NULL, 
	old_value TEXT DEFAULT '' NOT NULL, 
	new_value TEXT DEFAULT '' NOT NULL, 
	changed_at BIGINT NOT NULL, 
	changed_by TEXT DEFAULT '' NOT NULL, 
	PRIMARY KEY (id)
);

CREATE TABLE system_settings_config (
	"key" TEXT NOT NULL, 
	value TEXT DEFAULT '' NOT NULL, 
	type TEXT DEFAULT '' NOT NULL, 
	minimum FLOAT, 
	maximum FLOAT, 
	choices TEXT DEFAULT '' NOT NULL, 
	category TEXT DEFAULT '' NOT NULL, 
	description TEXT DEFAULT '' NOT NULL, 
	updated_at BIGINT NOT NULL, 
	updated_by TEXT DEFAULT '' NOT NULL, 
	PRIMARY KEY ("key")
);

INSERT INTO "system_settings_config" VALUES('orchestration_enabled','false','boolean',NULL,NULL,'[]','orchestration','Classify, allocate, compress and route tagged calls. Budgets that someone set are kept either way.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_adaptive_budget_enabled','false','boolean',NULL,NULL,'[]','orchestration','Plan runs by what their steps really used (strategy adaptive), whatever strategy is set below.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_token_budget_extract','800','integer',1.0,10000000.0,'[]','budgets','Tokens that a step of intent extract usually needs, prompt and answer together.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_token_budget_summarize','1500','integer',1.0,10000000.0,'[]','budgets','Tokens that a step of intent summarize usually needs, prompt and answer together.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_token_budget_generate','2500','integer',1.0,10000000.0,'[]','budgets','Tokens that a step of intent generate usually needs, prompt and answer together.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_token_budget_validate','1000','integer',1.0,10000000.0,'[]','budgets','Tokens that a step of intent validate usually needs, prompt and answer together.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_token_budget_send','500','integer',1.0,10000000.0,'[]','budgets','Tokens that a step of intent send usually needs, prompt and answer together.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_token_budget_transform','800','integer',1.0,10000000.0,'[]','budgets','Tokens that a step of intent transform usually needs, prompt and answer together.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_token_budget_conditional','300','integer',1.0,10000000.0,'[]','budgets','Tokens that a step of intent conditional usually needs, prompt and answer together.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_token_budget_aggregate','1200','integer',1.0,10000000.0,'[]','budgets','Tokens that a step of intent aggregate usually needs, prompt and answer together.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_token_budget_filter','600','integer',1.0,10000000.0,'[]','budgets','Tokens that a step of intent filter usually needs, prompt and answer together.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_token_budget_enrich','1000','integer',1.0,10000000.0,'[]','budgets','Tokens that a step of intent enrich usually needs, prompt and answer together.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_max_tokens_per_step','4000','integer',1.0,10000000.0,'[]','budgets','The most that a plan gives one step, in tokens.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_max_tokens_per_workflow','20000','integer',1.0,1000000000.0,'[]','budgets','Tokens that a run may use when no budget says otherwise.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_budget_overage_allowed','true','boolean',NULL,NULL,'[]','budgets','A step may go above its allocation, up to the threshold.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_budget_overage_threshold','1.2','number',1.0,10.0,'[]','budgets','Hard limit of a step ÷ its allocation, while overage is allowed.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_budget_allocation_strategy','"proportional"','string',NULL,NULL,'["equal", "proportional", "adaptive", "priority"]','budgets','How a run''s tokens are shared among its steps.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_compression_enabled','false','boolean',NULL,NULL,'[]','compression','Compress prompts of tagged calls.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_compression_strategy_extract','"structural"','string',NULL,NULL,'["none", "structural", "template", "truncate", "extractive", "semantic"]','compression','How prompts of intent extract are compressed.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_compression_strategy_summarize','"extractive"','string',NULL,NULL,'["none", "structural", "template", "truncate", "extractive", "semantic"]','compression','How prompts of intent summarize are compressed.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_compression_strategy_generate','"structural"','string',NULL,NULL,'["none", "structural", "template", "truncate", "extractive", "semantic"]','compression','How prompts of intent generate are compressed.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_compression_strategy_validate','"structural"','string',NULL,NULL,'["none", "structural", "template", "truncate", "extractive", "semantic"]','compression','How prompts of intent validate are compressed.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_compression_strategy_send','"template"','string',NULL,NULL,'["none", "structural", "template", "truncate", "extractive", "semantic"]','compression','How prompts of intent send are compressed.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_compression_strategy_transform','"structural"','string',NULL,NULL,'["none", "structural", "template", "truncate", "extractive", "semantic"]','compression','How prompts of intent transform are compressed.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_compression_strategy_conditional','"extractive"','string',NULL,NULL,'["none", "structural", "template", "truncate", "extractive", "semantic"]','compression','How prompts of intent conditional are compressed.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_compression_strategy_aggregate','"structural"','string',NULL,NULL,'["none", "structural", "template", "truncate", "extractive", "semantic"]','compression','How prompts of intent aggregate are compressed.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_compression_strategy_filter','"structural"','string',NULL,NULL,'["none", "structural", "template", "truncate", "extractive", "semantic"]','compression','How prompts of intent filter are compressed.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_compression_strategy_enrich','"structural"','string',NULL,NULL,'["none", "structural", "template", "truncate", "extractive", "semantic"]','compression','How prompts of intent enrich are compressed.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_compression_target_ratio','0.5','number',0.1,1.0,'[]','compression','Share of the prompt''s tokens to keep.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_compression_min_quality','0.8','number',0.0,1.0,'[]','compression','Below this measured quality the original prompt goes unchanged.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_compression_aggressiveness','"medium"','string',NULL,NULL,'["low", "medium", "high"]','compression','How far a strategy goes.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_ais_routing_enabled','false','boolean',NULL,NULL,'[]','routing','Choose models by complexity where a workflow allows it; `model: auto` always does.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_ais_fast_tier_max_score','3.0','number',0.0,10.0,'[]','routing','Effective complexity below which the fast tier does.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_ais_balanced_tier_max_score','6.5','number',0.0,10.0,'[]','routing','Effective complexity below which the balanced tier does.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_ais_powerful_tier_min_score','6.5','number',0.0,10.0,'[]','routing','Effective complexity from which calls go to the powerful tier.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_ais_quality_weight','0.6','number',0.0,1.0,'[]','routing','Weight of a model''s quality when choosing in a tier.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_ais_cost_weight','0.4','number',0.0,1.0,'[]','routing','Weight of a model''s low price when choosing in a tier.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_intent_classification_confidence_threshold','0.7','number',0.0,1.0,'[]','classification','An intent below this confidence is asked of the next source.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_quality_score_minimum','0.8','number',0.0,1.0,'[]','quality','An answer whose checks score below this failed.',0,'');

INSERT INTO "system_settings_config" VALUES('orchestration_max_retry_attempts','2','integer',0.0,10.0,'[]','quality','How often a step whose answer failed its checks moves one tier up.',0,'');

CREATE TABLE token_usage (
	id TEXT NOT NULL, 
	at BIGINT NOT NULL, 
	project TEXT DEFAULT '' NOT NULL, 
	key_id TEXT DEFAULT '' NOT NULL, 
	workflow TEXT DEFAULT '' NOT NULL, 
	run TEXT DEFAULT '' NOT NULL, 
	step TEXT DEFAULT '' NOT NULL, 
	agent TEXT DEFAULT '' NOT NULL, 
	user TEXT DEFAULT '' NOT NULL, 
	parent_run TEXT DEFAULT '' NOT NULL, 
	intent TEXT DEFAULT '' NOT NULL, 
	intent_confidence FLOAT, 
	intent_source TEXT DEFAULT '' NOT NULL, 
	model_requested TEXT DEFAULT '' NOT NULL, 
	model TEXT DEFAULT '' NOT NULL, 
	provider TEXT DEFAULT '' NOT NULL, 
	protocol TEXT DEFAULT '' NOT NULL, 
	stream BOOLEAN NOT NULL, 
	status TEXT DEFAULT '' NOT NULL, 
	code TEXT DEFAULT '' NOT NULL, 
	input_tokens BIGINT DEFAULT '0' NOT NULL, 
	output_tokens BIGINT DEFAULT '0' NOT NULL, 
	cache_read_tokens BIGINT DEFAULT '0' NOT NULL, 
	cache_write_tokens BIGINT DEFAULT '0' NOT NULL, 
	reasoning_tokens BIGINT DEFAULT '0' NOT NULL, 
	total_tokens BIGINT DEFAULT '0' NOT NULL, 
	cost_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	requests BIGINT DEFAULT '0' NOT NULL, 
	reserved_tokens BIGINT DEFAULT '0' NOT NULL, 
	reserved_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	overrun_tokens BIGINT DEFAULT '0' NOT NULL, 
	overrun_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	saved_tokens BIGINT DEFAULT '0' NOT NULL, 
	saved_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	usage_source TEXT DEFAULT '' NOT NULL, 
	actions TEXT DEFAULT '' NOT NULL, 
	savings TEXT DEFAULT '' NOT NULL, 
	detail TEXT DEFAULT '' NOT NULL, 
	prompt_tokens_counted BIGINT, 
	duration_ms BIGINT, 
	first_byte_ms BIGINT, 
	overhead_us BIGINT, 
	request_id TEXT DEFAULT '' NOT NULL, 
	PRIMARY KEY (id, at)
);

CREATE TABLE usage_daily (
	day_at BIGINT NOT NULL, 
	project TEXT NOT NULL, 
	workflow TEXT NOT NULL, 
	step TEXT NOT NULL, 
	agent TEXT NOT NULL, 
	key_id TEXT NOT NULL, 
	intent TEXT NOT NULL, 
	model TEXT NOT NULL, 
	savings TEXT NOT NULL, 
	calls BIGINT DEFAULT '0' NOT NULL, 
	refused BIGINT DEFAULT '0' NOT NULL, 
	errors BIGINT DEFAULT '0' NOT NULL, 
	input_tokens BIGINT DEFAULT '0' NOT NULL, 
	output_tokens BIGINT DEFAULT '0' NOT NULL, 
	total_tokens BIGINT DEFAULT '0' NOT NULL, 
	cost_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	requests BIGINT DEFAULT '0' NOT NULL, 
	saved_tokens BIGINT DEFAULT '0' NOT NULL, 
	saved_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	overrun_tokens BIGINT DEFAULT '0' NOT NULL, 
	overrun_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	PRIMARY KEY (day_at, project, workflow, step, agent, key_id, intent, model, savings)
);

CREATE TABLE usage_dead_letter (
	id TEXT NOT NULL, 
	project TEXT DEFAULT '' NOT NULL, 
	at BIGINT NOT NULL, 
	kind TEXT DEFAULT '' NOT NULL, 
	total_tokens BIGINT DEFAULT '0' NOT NULL, 
	cost_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	requests BIGINT DEFAULT '0' NOT NULL, 
	draft TEXT DEFAULT '' NOT NULL, 
	detail TEXT DEFAULT '' NOT NULL, 
	reason TEXT DEFAULT '' NOT NULL, 
	parked_at BIGINT NOT NULL, 
	PRIMARY KEY (id)
);

CREATE TABLE usage_hourly (
	hour_at BIGINT NOT NULL, 
	project TEXT NOT NULL, 
	workflow TEXT NOT NULL, 
	step TEXT NOT NULL, 
	agent TEXT NOT NULL, 
	key_id TEXT NOT NULL, 
	intent TEXT NOT NULL, 
	model TEXT NOT NULL, 
	savings TEXT NOT NULL, 
	calls BIGINT DEFAULT '0' NOT NULL, 
	refused BIGINT DEFAULT '0' NOT NULL, 
	errors BIGINT DEFAULT '0' NOT NULL, 
	input_tokens BIGINT DEFAULT '0' NOT NULL, 
	output_tokens BIGINT DEFAULT '0' NOT NULL, 
	total_tokens BIGINT DEFAULT '0' NOT NULL, 
	cost_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	requests BIGINT DEFAULT '0' NOT NULL, 
	saved_tokens BIGINT DEFAULT '0' NOT NULL, 
	saved_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	overrun_tokens BIGINT DEFAULT '0' NOT NULL, 
	overrun_nano_usd BIGINT DEFAULT '0' NOT NULL, 
	PRIMARY KEY (hour_at, project, workflow, step, agent, key_id, intent, model, savings)
);

CREATE TABLE workflows (
	project TEXT NOT NULL, 
	name TEXT NOT NULL, 
	mode TEXT DEFAULT '' NOT NULL, 
	declaration TEXT DEFAULT '' NOT NULL, 
	updated_at BIGINT NOT NULL, 
	updated_by TEXT DEFAULT '' NOT NULL, 
	PRIMARY KEY (project, name)
);

CREATE INDEX ix_token_usage_at ON token_usage (at);

CREATE INDEX ix_token_usage_run ON token_usage (project, run, at);

CREATE INDEX ix_runs_last_at ON runs (project, last_at);

CREATE INDEX ix_runs_parent ON runs (project, parent_run) WHERE parent_run <> '';

CREATE INDEX ix_runs_workflow ON runs (project, workflow, last_at);

CREATE INDEX ix_settings_history_key ON settings_history ("key", id);

CREATE INDEX ix_agent_intensity_agent ON agent_intensity_metrics (project, agent, id);

CREATE INDEX ix_agent_intensity_current ON agent_intensity_metrics (current, project, agent);

CREATE INDEX ix_intent_cache_expires_at ON intent_cache (expires_at);

CREATE INDEX ix_audit_events_at ON audit_events (at);

CREATE INDEX ix_admin_sessions_user ON admin_sessions (user);

CREATE TRIGGER audit_events_keep_update BEFORE UPDATE ON audit_events BEGIN SELECT RAISE(ABORT, 'audit_events is append-only'); END;

CREATE TRIGGER audit_events_keep_delete BEFORE DELETE ON audit_events WHEN OLD.at > (strftime('%s', 'now') - 7776000) * 1000 BEGIN SELECT RAISE(ABORT, 'audit_events is append-only'); END;

CREATE INDEX ix_runs_agent ON runs (project, agent, last_at) WHERE agent <> '';
