package storagev1

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

var updateFlag = flag.Bool("update", false, "write testdata/wire.txt anew")

const wireFile = "testdata/wire.txt"

// TestWireIsPinned: what is on the wire keeps its number, type and name, or clients of an older version misread it. The
// list in testdata is what was once released: lines may be added to it (run this test with -update and commit), never
// changed or taken away; a field that is given up is reserved in the .proto, and its line becomes the reservation's.
func TestWireIsPinned(t *testing.T) {
	now := wire(t)
	if *updateFlag {
		if err := os.WriteFile(wireFile, []byte(strings.Join(now, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(wireFile)
	if err != nil {
		t.Fatal(err)
	}
	pinned := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	for _, line := range pinned {
		if _, found := slices.BinarySearch(now, line); !found {
			t.Errorf("was on the wire, and is not as it was: %s", line)
		}
	}
	for _, line := range now {
		if _, found := slices.BinarySearch(pinned, line); !found {
			t.Errorf("is not pinned yet (go test ./proto/storage/v1 -update): %s", line)
		}
	}
}

// wire lists everything of this package that peers must agree on, one thing a line, sorted.
func wire(t *testing.T) (lines []string) {
	t.Helper()
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	var messages func(ms protoreflect.MessageDescriptors)
	enums := func(es protoreflect.EnumDescriptors) {
		for i := range es.Len() {
			values := es.Get(i).Values()
			for j := range values.Len() {
				add("enum %s %d %s", es.Get(i).FullName(), values.Get(j).Number(), values.Get(j).Name())
			}
		}
	}
	messages = func(ms protoreflect.MessageDescriptors) {
		for i := range ms.Len() {
			m := ms.Get(i)
			add("message %s", m.FullName())
			for j := range m.Fields().Len() {
				f := m.Fields().Get(j)
				add("field %s %d %s %s %s", m.FullName(), f.Number(), f.Cardinality(), kind(f), f.Name())
			}
			for j := range m.ReservedRanges().Len() {
				r := m.ReservedRanges().Get(j)
				add("reserved %s %d to %d", m.FullName(), r[0], r[1]-1)
			}
			enums(m.Enums())
			messages(m.Messages())
		}
	}
	files := 0
	protoregistry.GlobalFiles.RangeFilesByPackage("storage.v1", func(f protoreflect.FileDescriptor) bool {
		files++
		enums(f.Enums())
		messages(f.Messages())
		for i := range f.Services().Len() {
			methods := f.Services().Get(i).Methods()
			for j := range methods.Len() {
				m := methods.Get(j)
				add("rpc %s %s (client streams: %v) returns %s (server streams: %v)", m.FullName(), m.Input().FullName(),
					m.IsStreamingClient(), m.Output().FullName(), m.IsStreamingServer())
			}
		}
		return true
	})
	if files == 0 {
		t.Fatal("no file of the package is registered")
	}
	slices.Sort(lines)
	return lines
}

func kind(f protoreflect.FieldDescriptor) string {
	switch {
	case f.Enum() != nil:
		return string(f.Enum().FullName())
	case f.Message() != nil:
		return string(f.Message().FullName())
	default:
		return f.Kind().String()
	}
}
