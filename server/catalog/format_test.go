package catalog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
)

// TestGoldenJSON: the JSON of every command, of a state and of an answer, with every field set and with none, is what lies in logs and
// snapshots and what nodes of other versions send, byte for byte. A new field changes one line of the file: run with -update, and
// see that nothing else changed. A field must not move, and must not change its name or form.
func TestGoldenJSON(t *testing.T) {
	var got bytes.Buffer
	for _, c := range []Command{InitCluster{}, AddNode{}, UpdateNode{}, SetNodeState{}, AddGroup{}, SetGroupReady{}, PlanReplica{}, SetReplica{},
		RemoveReplica{}, CreateVolume{}, ResizeVolume{}, SetVolumeLimits{}, SetVolumeLabels{}, DeleteVolume{}, FinishDelete{}, Attach{}, Detach{}, SetFenced{},
		OpenSession{}, CloseSession{}, ExpireSessions{}, RaiseVersion{}, SetNodeIntent{}} {
		body, full := filled(t, reflect.TypeOf(c))
		empty, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%s %s\n%s %s\n", c.name(), body, c.name(), empty)
		again, err := decodeBody(c.name(), body)
		if err != nil || !reflect.DeepEqual(again, full) {
			t.Errorf("%s comes back as %+v, %v", body, again, err)
		}
	}
	body, full := filled(t, reflect.TypeFor[snapshotBody]())
	fmt.Fprintf(&got, "snapshot %s\n", body)
	var again snapshotBody
	if err := decodeStrict(body, &again); err != nil || !reflect.DeepEqual(again, full) {
		t.Errorf("%s comes back as %+v, %v", body, again, err)
	}
	answer, _ := filled(t, reflect.TypeFor[resultFields]())
	fmt.Fprintf(&got, "result %s\n", answer)

	const file = "testdata/objects.golden"
	if *update {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("JSON that others have, or that lies in logs, has changed:\n%s\nwant\n%s", got.String(), want)
	}
}

// filled returns an object of the type with every field set, and its JSON.
func filled(t *testing.T, of reflect.Type) (body []byte, object any) {
	t.Helper()
	v := reflect.New(of).Elem()
	n := 0
	fill(t, v, &n)
	body, err := json.Marshal(v.Interface())
	if err != nil {
		t.Fatal(err)
	}
	return body, v.Interface()
}

// fill sets everything in v: each to another value, as far as its type has any. Of two elements of a list the second stays empty,
// which shows what is left out then.
func fill(t *testing.T, v reflect.Value, n *int) {
	t.Helper()
	*n++
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = testTime.Add(time.Duration(*n) * time.Minute)
		return
	case **storage.Error: // is not part of the JSON as it is
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), n)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(t, v.Index(0), n)
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(t, key, n)
		fill(t, value, n)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Array:
		for i := range v.Len() {
			v.Index(i).SetUint(uint64(*n % 256))
		}
	case reflect.String:
		v.SetString(fmt.Sprintf("s%d", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n % 256))
	default:
		t.Fatalf("the test cannot fill a %v; teach it", v.Type())
	}
}
