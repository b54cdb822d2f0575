import json
from tests.common import rows
from accounts import directory
import time

def test_it(client, app, database, config):
    with database.writing() as s:
        u = directory.add_user(s, "ann")
        _, tok = directory.add_token(s, u, name="", made_by="test")
    h={"X-API-Key": tok}
    r=client.get("/api/v1/apps"); print(r.status_code, r.json, r.headers)
    r=client.get("/api/v1/apps?page_size=101",headers=h); print(r.status_code, r.json)
    r=client.get("/api/v1/apps/zz",headers=h); print(r.status_code, r.json)
    r=client.get("/api/v1/nothing",headers=h); print(r.status_code, r.json)
    r=client.post("/api/v1/cvms/provision",headers=h,json={"name":"a"}); print(r.status_code, r.json)
    r=client.post("/api/v1/cvms/provision",headers=h,json={"name":"web-one","compose_file":{"docker_compose_file":"services: {a: {image: x}}","name":""}}); print(r.status_code, json.dumps(r.json,indent=1))
    p=r.json
    r=client.post("/api/v1/cvms",headers=h,json={"app_id":p["app_id"],"compose_hash":p["compose_hash"]}); print(r.status_code, json.dumps(r.json,indent=1))
    r=client.get("/api/v1/apps",headers=h); print(r.status_code, json.dumps(r.json,indent=1))
    for v in ("2025-10-28","2026-05-22"):
        r=client.get("/api/v1/apps/"+p["app_id"],headers={**h,"X-Phala-Version":v}); print(r.status_code, json.dumps(r.json,indent=1))
    r=client.get(f"/api/v1/apps/{p['app_id']}/revisions",headers=h); print(r.status_code, json.dumps(r.json,indent=1))
    r=client.get(f"/api/v1/apps/{p['app_id']}/revisions/"+r.json["revisions"][0]["revision_id"],headers=h); print(r.status_code, json.dumps(r.json,indent=1))
    r=client.get(f"/api/v1/cvms/web-one",headers=h); print(r.status_code, json.dumps(r.json,indent=1))
    r=client.get(f"/api/v1/cvms/paginated",headers=h); print(r.status_code, r.json["total"])
    r=client.get(f"/api-docs/apps.json",headers=h); print(r.status_code, len(r.data))
    assert 0
