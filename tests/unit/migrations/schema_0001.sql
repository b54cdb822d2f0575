-- A database of the first schema with two VMs, as sqlite3's .dump prints it.
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE port_leases (
	id INTEGER NOT NULL, 
	vm_id VARCHAR(64) NOT NULL, 
	position INTEGER NOT NULL, 
	protocol VARCHAR(3) NOT NULL, 
	host_address VARCHAR(45) NOT NULL, 
	host_port INTEGER NOT NULL, 
	vm_port INTEGER NOT NULL, 
	CONSTRAINT pk_port_leases PRIMARY KEY (id), 
	CONSTRAINT fk_port_leases_vm_id FOREIGN KEY(vm_id) REFERENCES vms (id) ON DELETE CASCADE, 
	CONSTRAINT uq_port_leases_protocol_host_address_host_port UNIQUE (protocol, host_address, host_port)
);
INSERT INTO "port_leases" VALUES(1,'11111111-1111-4111-8111-111111111111',0,'tcp','127.0.0.1',18080,80);
INSERT INTO "port_leases" VALUES(2,'22222222-2222-4222-8222-222222222222',0,'tcp','127.0.0.1',18081,80);
CREATE TABLE vm_events (
	id INTEGER NOT NULL, 
	vm_id VARCHAR(64) NOT NULL, 
	event TEXT NOT NULL, 
	body TEXT NOT NULL, 
	timestamp_ms INTEGER NOT NULL, 
	CONSTRAINT pk_vm_events PRIMARY KEY (id), 
	CONSTRAINT fk_vm_events_vm_id FOREIGN KEY(vm_id) REFERENCES vms (id) ON DELETE CASCADE
);
INSERT INTO "vm_events" VALUES(1,'11111111-1111-4111-8111-111111111111','vmm.stop','exit code 0',1700000002000);
INSERT INTO "vm_events" VALUES(2,'22222222-2222-4222-8222-222222222222','vmm.stop','exit code 0',1700000002000);
CREATE TABLE vms (
	id VARCHAR(64) NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	app_id VARCHAR(40) NOT NULL, 
	image VARCHAR(64) NOT NULL, 
	image_version VARCHAR(64) NOT NULL, 
	vcpu INTEGER NOT NULL, 
	memory_mb INTEGER NOT NULL, 
	disk_gb INTEGER NOT NULL, 
	no_tee BOOLEAN NOT NULL, 
	simulated_tee VARCHAR(32), 
	hugepages BOOLEAN NOT NULL, 
	pin_numa BOOLEAN NOT NULL, 
	options JSON NOT NULL, 
	compose_file TEXT NOT NULL, 
	encrypted_env BLOB NOT NULL, 
	user_config TEXT NOT NULL, 
	wished VARCHAR(16) NOT NULL, 
	observed VARCHAR(16) NOT NULL, 
	pid INTEGER, 
	pid_start INTEGER, 
	accel VARCHAR(8), 
	created_ms INTEGER NOT NULL, 
	started_ms INTEGER, 
	stopped_ms INTEGER, 
	restarts INTEGER NOT NULL, 
	next_restart_ms INTEGER, 
	instance_id VARCHAR(40), 
	boot_progress TEXT NOT NULL, 
	boot_error TEXT NOT NULL, 
	shutdown_progress TEXT NOT NULL, 
	CONSTRAINT pk_vms PRIMARY KEY (id)
);
INSERT INTO "vms" VALUES('11111111-1111-4111-8111-111111111111','first','abababababababababababababababababababab','tiny-0.5.4','0.5.4',1,256,1,0,'dstack-tdx',0,0,'{}','{"docker_compose_file": "services: {}"}',X'00FF','','stopped','absent',NULL,NULL,'tcg',1700000000000,1700000001000,1700000002000,0,NULL,NULL,'done','','');
INSERT INTO "vms" VALUES('22222222-2222-4222-8222-222222222222','second','abababababababababababababababababababab','tiny-0.5.4','0.5.4',1,256,1,0,'dstack-tdx',0,0,'{}','{"docker_compose_file": "services: {}"}',X'00FF','','shutdown','absent',NULL,NULL,'tcg',1700000000001,1700000001000,1700000002000,0,NULL,NULL,'done','','');
CREATE INDEX ix_vms_app_id ON vms (app_id);
CREATE INDEX ix_vms_created_ms ON vms (created_ms);
CREATE INDEX ix_vms_name ON vms (name);
CREATE INDEX ix_vms_wished ON vms (wished);
CREATE INDEX ix_port_leases_host_port ON port_leases (host_port);
CREATE INDEX ix_port_leases_vm_id ON port_leases (vm_id);
CREATE INDEX ix_vm_events_vm_id ON vm_events (vm_id);
COMMIT;
