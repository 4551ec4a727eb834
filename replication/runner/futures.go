package runner

import (
	"reflect"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// futures makes the library's futures end when their instance stops. The library answers whatever its main loop holds
// when it shuts down, but neither what waits in the queue of Apply nor what waits for the state machine: such a future
// never ends, and whoever waits for it keeps the blocks that it has reserved (ranges), the bytes that it was
// admitted for, and the peers' handler it runs in.
//
// A future of the library ends with its field ShutdownCh, if that is set; the library sets it in some and not in those of
// Apply, Barrier and the changes of members. The field is exported and its type is not, hence the reflection.
type futures struct {
	stopped chan struct{} // closed when the instance stops
	known   atomic.Pointer[futureField]
}

// futureField says where ShutdownCh lies in futures of the type that was seen last.
type futureField struct {
	of    reflect.Type
	index []int
}

const shutdownField = "ShutdownCh"

// until makes the future end when the instance stops, and returns it. Nobody waits for it yet.
func until[F raft.Future](fs *futures, future F) F {
	v := reflect.ValueOf(future)
	if v.Kind() != reflect.Pointer { // an error that is known already
		return future
	}
	v = v.Elem()
	known := fs.known.Load()
	if known == nil || known.of != v.Type() {
		f, ok := v.Type().FieldByName(shutdownField)
		if !ok {
			return future
		}
		known = &futureField{v.Type(), f.Index}
		fs.known.Store(known)
	}
	if f := v.FieldByIndex(known.index); f.IsNil() {
		f.Set(reflect.ValueOf(fs.stopped))
	}
	return future
}
