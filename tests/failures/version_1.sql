-- A store of version 1, with runs in it, as the code of that version made it.
CREATE TABLE failures_attempts (
	uuid VARCHAR NOT NULL,
	app VARCHAR NOT NULL,
	engine VARCHAR NOT NULL,
	attempt INTEGER NOT NULL,
	error TEXT NOT NULL,
	message TEXT NOT NULL,
	traceback TEXT NOT NULL,
	seconds DOUBLE NOT NULL,
	trail TEXT NOT NULL,
	PRIMARY KEY (uuid, app, engine, attempt)
);
INSERT INTO "failures_attempts" VALUES('one','shop','',1,'KeyError','''EUR''','KeyError: ''EUR''
',0.25,'[]');
INSERT INTO "failures_attempts" VALUES('two','shop','',1,'KeyError','''USD''','KeyError: ''USD''
',0.25,'[]');
INSERT INTO "failures_attempts" VALUES('three','shop','celery',1,'ValueError','N/A','ValueError: N/A
',0.25,'[]');
INSERT INTO "failures_attempts" VALUES('three','shop','celery',2,'ValueError','N/A','ValueError: N/A
',0.25,'[]');
INSERT INTO "failures_attempts" VALUES('four','shop','',1,'KeyError','''EUR''','KeyError: ''EUR''
',0.25,'[]');
CREATE TABLE failures_counts (
	group_id VARCHAR NOT NULL,
	hour INTEGER NOT NULL,
	status VARCHAR NOT NULL,
	plugin VARCHAR NOT NULL,
	runs BIGINT NOT NULL,
	PRIMARY KEY (group_id, hour, status, plugin)
);
INSERT INTO "failures_counts" VALUES('mail-value',0,'retried','',0);
INSERT INTO "failures_counts" VALUES('mail-value',472222,'retried','',0);
INSERT INTO "failures_counts" VALUES('price-key',0,'failed','',2);
INSERT INTO "failures_counts" VALUES('price-key',0,'recovered','last-rate',1);
INSERT INTO "failures_counts" VALUES('price-key',472222,'failed','',2);
INSERT INTO "failures_counts" VALUES('price-key',472222,'recovered','last-rate',1);
INSERT INTO "failures_counts" VALUES('mail-value',0,'failed','',1);
INSERT INTO "failures_counts" VALUES('mail-value',472222,'failed','',1);
CREATE TABLE failures_groups (
	id VARCHAR NOT NULL,
	task TEXT NOT NULL,
	error TEXT NOT NULL,
	message TEXT NOT NULL,
	state VARCHAR NOT NULL,
	first_seen DOUBLE NOT NULL,
	last_seen DOUBLE NOT NULL,
	PRIMARY KEY (id)
);
INSERT INTO "failures_groups" VALUES('mail-value','mail','ValueError','N/A','open',1700000002.0,1700000003.0);
INSERT INTO "failures_groups" VALUES('price-key','price','KeyError','''EUR''','open',1700000000.0,1700000004.0);
CREATE TABLE failures_meta (
	name VARCHAR NOT NULL,
	value BIGINT NOT NULL,
	PRIMARY KEY (name)
);
INSERT INTO "failures_meta" VALUES('version',1);
INSERT INTO "failures_meta" VALUES('runs',4);
INSERT INTO "failures_meta" VALUES('dropped',7);
CREATE TABLE failures_runs (
	uuid VARCHAR NOT NULL,
	app VARCHAR NOT NULL,
	engine VARCHAR NOT NULL,
	group_id VARCHAR NOT NULL,
	task TEXT NOT NULL,
	queue TEXT,
	status VARCHAR NOT NULL,
	attempts INTEGER NOT NULL,
	decided_by TEXT,
	decision VARCHAR,
	reason TEXT NOT NULL,
	at DOUBLE NOT NULL,
	arguments TEXT,
	not_replayable TEXT,
	replay_of VARCHAR,
	PRIMARY KEY (uuid, app, engine)
);
INSERT INTO "failures_runs" VALUES('one','shop','','price-key','price',NULL,'failed',1,NULL,NULL,'',1700000000.0,'{"args":[1],"kwargs":{"to":"EUR"}}',NULL,NULL);
INSERT INTO "failures_runs" VALUES('two','shop','','price-key','price',NULL,'recovered',1,'last-rate','Replace','',1700000001.0,'{"args":[],"kwargs":{}}',NULL,NULL);
INSERT INTO "failures_runs" VALUES('three','shop','celery','mail-value','mail','q','failed',2,NULL,NULL,'',1700000003.0,'{"args":[],"kwargs":{}}',NULL,NULL);
INSERT INTO "failures_runs" VALUES('four','shop','','price-key','price',NULL,'failed',1,NULL,NULL,'',1700000004.0,'{"args":[],"kwargs":{}}',NULL,'one');
CREATE INDEX failures_groups_by_time ON failures_groups (last_seen);
CREATE INDEX failures_runs_by_original ON failures_runs (replay_of, at) WHERE replay_of IS NOT NULL;
CREATE INDEX failures_runs_by_group ON failures_runs (group_id, at);
CREATE INDEX failures_runs_by_time ON failures_runs (at);
CREATE INDEX failures_runs_by_status ON failures_runs (group_id, status, at);
