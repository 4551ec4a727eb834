package placement

import (
	"encoding/json"
	"testing"

	storage "github.com/storaged/storaged"
)

// TestReportJSON: nodes of other versions read reports, so that stores and replicas are named in text as they have always been.
func TestReportJSON(t *testing.T) {
	r := NodeReport{Node: 1, Stores: []StoreReport{{CapacityBytes: 5}}, Replicas: []ReplicaReport{{Group: 2, State: ReplicaLeader, Members: []Member{{Node: 1}}}}}
	r.Stores[0].ID[0], r.Replicas[0].Key.Store[0], r.Replicas[0].Key.Incarnation = 0xd1, 0xd2, 7
	got, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"node":1,"stores":[{"id":"d1000000-0000-0000-0000-000000000000","capacity_bytes":5,"used_bytes":0,"free_bytes":0}],` +
		`"replicas":[{"group":2,"key":"d2000000-0000-0000-0000-000000000000/7","state":"leader",` +
		`"members":[{"key":"00000000-0000-0000-0000-000000000000/0","node":1}]}]}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	space := storage.StoreSpace{LogBytes: 1, LiveBytes: 2, GarbageBytes: 3, TableBytes: 4, OtherBytes: 5, UnusedBytes: 6, ReserveBytes: 7, Fill: 0.5,
		NoRoom: true, Compaction: storage.CompactionBraked}
	const wantSpace = `{"log_bytes":1,"live_bytes":2,"garbage_bytes":3,"table_bytes":4,"other_bytes":5,"unused_bytes":6,"reserve_bytes":7,"fill":0.5,` +
		`"no_room":true,"compaction":"braked"}`
	if got, err := json.Marshal(space); err != nil || string(got) != wantSpace {
		t.Errorf("%v, got  %s\nwant %s", err, got, wantSpace)
	}
	var back StoreReport
	if err := json.Unmarshal([]byte(`{"capacity_bytes":9,"news":[{"a":1}],"fill":0.25,"compaction":"idle"}`), &back); err != nil || back.Fill != 0.25 || !back.Known() {
		t.Errorf("%v, %+v", err, back)
	}
}
