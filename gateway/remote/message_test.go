package remote

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
)

// TestRoutesOfOlderNodes: the routes that a node tells hold the cluster's heartbeat timeout, and gateways take routes without it, as
// older nodes send them.
func TestRoutesOfOlderNodes(t *testing.T) {
	body, err := json.Marshal(Routes{HeartbeatTimeout: 2 * time.Second, Groups: map[storage.GroupID][]storage.NodeID{1: {1}}})
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]time.Duration{string(body): 2 * time.Second, `{"version":1}`: 0} {
		var r Routes
		if err := json.Unmarshal([]byte(text), &r); err != nil || r.HeartbeatTimeout != want {
			t.Errorf("%s: %v, %v", text, r.HeartbeatTimeout, err)
		}
	}
}

// TestMessages: what travels between gateways and nodes of different versions looks as it always has, with all fields and with
// none, and reads as what was said.
func TestMessages(t *testing.T) {
	limits := storage.VolumeLimits{MaxIOPS: 5, MaxBytesPerSecond: 6}
	for _, test := range []struct {
		full            any
		want, wantEmpty string
	}{
		{OpenRequest{Volume: "v", Host: "h", Instance: "i", Machine: "m.b", Name: "n", Attachment: 3, After: 4, ReadOnly: true},
			`{"volume":"v","host":"h","instance":"i","machine":"m.b","name":"n","attachment":3,"after":4,"read_only":true}`,
			`{"volume":"","host":"","instance":"","attachment":0}`},
		{volume.SessionInfo{ID: 9, Volume: 2, SizeBytes: 4096, Groups: []storage.GroupID{1}, Epoch: 1, Generation: 2, Limits: limits, Revision: 7,
			Predecessors: []storage.SessionID{8}},
			`{"session":9,"volume":2,"size_bytes":4096,"groups":[1],"epoch":1,"generation":2,"limits":{"max_iops":5,"max_bytes_per_second":6},` +
				`"revision":7,"predecessors":[8]}`,
			`{"session":0,"volume":0,"size_bytes":0,"groups":null,"generation":0}`},
		{CloseRequest{Host: "h", Session: 9}, `{"host":"h","session":9}`, `{"host":"","session":0}`},
		{FollowRequest{Host: "h", Sessions: []storage.SessionID{9}, Volumes: []Followed{{Watch{2, 3}, 7}}, Routes: 6, Wait: 1},
			`{"host":"h","sessions":[9],"volumes":[{"volume":2,"attachment":3,"revision":7}],"routes":6,"wait_ns":1}`, `{"host":""}`},
		{Followed{Watch{2, 3}, 7}, `{"volume":2,"attachment":3,"revision":7}`, `{"volume":0}`},
		{FollowAnswer{Volumes: []News{{Watch{2, 3}, volume.VolumeState{Revision: 7, SizeBytes: 4096, Epoch: 1, Generation: 2, Limits: limits,
			Deleted: true, Lost: "gone"}}}, Routes: &Routes{Version: 6, Nodes: map[storage.NodeID]string{1: "a"},
			Groups: map[storage.GroupID][]storage.NodeID{1: {1}}, HeartbeatTimeout: 5}},
			`{"volumes":[{"volume":2,"attachment":3,"revision":7,"size_bytes":4096,"epoch":1,"generation":2,` +
				`"limits":{"max_iops":5,"max_bytes_per_second":6},"deleted":true,"lost":"gone"}],` +
				`"routes":{"version":6,"nodes":{"1":"a"},"groups":{"1":[1]},"heartbeat_timeout_ns":5}}`, `{}`},
		{News{Watch{2, 3}, volume.VolumeState{Revision: 7, SizeBytes: 4096, Epoch: 1, Generation: 2, Limits: limits, Deleted: true, Lost: "gone"}},
			`{"volume":2,"attachment":3,"revision":7,"size_bytes":4096,"epoch":1,"generation":2,` +
				`"limits":{"max_iops":5,"max_bytes_per_second":6},"deleted":true,"lost":"gone"}`,
			`{"volume":0,"revision":0,"size_bytes":0,"generation":0}`},
		{Routes{Version: 6, Nodes: map[storage.NodeID]string{1: "a"}, Groups: map[storage.GroupID][]storage.NodeID{1: {1}}, HeartbeatTimeout: 5},
			`{"version":6,"nodes":{"1":"a"},"groups":{"1":[1]},"heartbeat_timeout_ns":5}`, `{"version":0,"nodes":null,"groups":null}`},
	} {
		empty := reflect.New(reflect.TypeOf(test.full)).Elem()
		wantAllSet(t, empty.Type().Name(), reflect.ValueOf(test.full))
		wantMessage(t, test.full, test.want)
		wantMessage(t, empty.Interface(), test.wantEmpty)
	}
}

// wantMessage checks that v is written as want, and want read as v.
func wantMessage(t *testing.T, v any, want string) {
	t.Helper()
	if got, err := json.Marshal(v); err != nil || string(got) != want {
		t.Errorf("%T: %v\n got %s\nwant %s", v, err, got, want)
	}
	read := reflect.New(reflect.TypeOf(v))
	if err := json.Unmarshal([]byte(want), read.Interface()); err != nil || !reflect.DeepEqual(read.Elem().Interface(), v) {
		t.Errorf("%s reads as %+v, %v; want %+v", want, read.Elem(), err, v)
	}
}

// wantAllSet checks that no field of v is zero: one that is added has to be shown above.
func wantAllSet(t *testing.T, name string, v reflect.Value) {
	t.Helper()
	switch {
	case v.IsZero():
		t.Errorf("%s is not set", name)
	case v.Kind() == reflect.Pointer:
		wantAllSet(t, name, v.Elem())
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			wantAllSet(t, name, v.Index(i))
		}
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			wantAllSet(t, name+"."+v.Type().Field(i).Name, v.Field(i))
		}
	}
}
