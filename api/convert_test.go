package api

import (
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	storage "github.com/storaged/storaged"
	pb "github.com/storaged/storaged/proto/storage/v1"
)

// fill sets every field reachable from v to a value that is not its zero, so that a field that a conversion forgets
// shows up.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(int64(1000+*n), 5).UTC()))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, n)
		fill(value, n)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Array:
		for i := range v.Len() {
			v.Index(i).SetUint(uint64(*n + i))
		}
	case reflect.String:
		v.SetString(map[reflect.Type]string{
			reflect.TypeFor[storage.VolumeState](): string(storage.VolumeDeleting), reflect.TypeFor[storage.NodeState](): string(storage.NodeSuspect), reflect.TypeFor[storage.NodeIntent](): string(storage.IntentMaintenance),
			reflect.TypeFor[StoreState](): string(StoreFull), reflect.TypeFor[storage.CompactionState](): string(storage.CompactionBehind), reflect.TypeFor[storage.ReplicaRole](): string(storage.RolePulling),
			reflect.TypeFor[Health](): string(HealthCritical), reflect.TypeFor[TaskKind](): string(TaskBalance),
			reflect.TypeFor[storage.Access](): string(storage.AccessShared), reflect.TypeFor[storage.HolderKind](): string(storage.HolderHost),
		}[v.Type()])
		if v.String() == "" {
			v.SetString("text")
		}
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(float64(*n) / 4)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n))
	default:
		panic("no value for " + v.Type().String())
	}
}

// overWire encodes and decodes, as between two machines.
func overWire[M proto.Message](t *testing.T, m M) M {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out := m.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(data, out); err != nil {
		t.Fatal(err)
	}
	return out.(M)
}

func roundTrip[D any, M proto.Message](t *testing.T, to func(D) M, from func(M) D, more ...D) {
	t.Helper()
	var full, zero D
	n := 0
	fill(reflect.ValueOf(&full).Elem(), &n)
	for _, want := range append(more, full, from(to(zero))) {
		if diff := cmp.Diff(want, from(overWire(t, to(want))), notShown); diff != "" {
			t.Errorf("%T differs after the wire (-sent +received):\n%s", want, diff)
		}
	}
}

// notShown is what the catalog keeps of its objects and the API does not show. A new field is not in it by itself.
var notShown = cmp.Options{
	cmpopts.IgnoreFields(storage.Volume{}, "Fenced", "Moved", "Revision", "RequestID"),
	cmpopts.IgnoreFields(storage.Node{}, "Stores", "AddedAt"),
	cmpopts.IgnoreFields(storage.Replica{}, "ConfigIndex"),
}

func TestEveryFieldSurvivesTheWire(t *testing.T) {
	roundTrip(t, VolumeToProto, VolumeFromProto, Volume{Volume: storage.Volume{State: storage.VolumeReady}, AllocatedBytes: -1, OnDiskBytes: -1},
		Volume{Volume: storage.Volume{State: storage.VolumeReady}})
	roundTrip(t, LimitsToProto, LimitsFromProto)
	roundTrip(t, NodeToProto, NodeFromProto)
	roundTrip(t, GroupToProto, GroupFromProto)
	roundTrip(t, StatusToProto, StatusFromProto)
	roundTrip(t, VersionToProto, VersionFromProto)
	roundTrip(t, AttachmentToProto, AttachmentFromProto)
	roundTrip(t, NewAttachmentToProto, NewAttachmentFromProto)
}

func enumTable[D ~string, W ~int32](t *testing.T, table EnumTable[D, W], names map[int32]string) {
	t.Helper()
	if len(table) != len(names)-1 {
		t.Errorf("%T: %d rows for %d values", table, len(table), len(names)-1)
	}
	for _, p := range table {
		if table.ToProto(p.Domain) != p.Wire || table.FromProto(p.Wire) != p.Domain || p.Wire == 0 {
			t.Errorf("%v does not map to %v and back", p.Domain, p.Wire)
		}
	}
	if got := table.FromProto(W(999)); got != enumUnknown {
		t.Errorf("a value of the future reads as %q", got)
	}
	if got := table.ToProto("nonsense"); got != 0 {
		t.Errorf("a state that does not exist is sent as %v", got)
	}
}

func TestEnumerations(t *testing.T) {
	enumTable(t, volumeStates, pb.VolumeState_name)
	enumTable(t, nodeStates, pb.NodeState_name)
	enumTable(t, storeStates, pb.StoreState_name)
	enumTable(t, replicaRoles, pb.ReplicaRole_name)
	enumTable(t, healths, pb.Health_name)
	enumTable(t, taskKinds, pb.TaskKind_name)
	enumTable(t, accesses, pb.Access_name)
	enumTable(t, holderKinds, pb.HolderKind_name)
}

// Answers of a newer or a defective node do not stop a client.
func TestOddMessages(t *testing.T) {
	if v := VolumeFromProto(nil); v.AllocatedBytes != -1 || v.OnDiskBytes != -1 || v.State != enumUnknown || !v.CreatedAt.IsZero() {
		t.Errorf("no volume reads as %+v", v)
	}
	g := GroupFromProto(&pb.Group{Replicas: []*pb.Replica{{Store: "not a uuid", Role: 77}}})
	if r := g.Replicas[0]; !r.Key.Store.IsZero() || r.Role != enumUnknown {
		t.Errorf("an odd replica reads as %+v", r)
	}
	if s := StatusFromProto(&pb.ClusterStatus{ClusterId: "?"}); !s.ClusterID.IsZero() {
		t.Errorf("an odd cluster id reads as %v", s.ClusterID)
	}
}
