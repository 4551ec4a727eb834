package export

import (
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/nbd"
)

// Attached returns an open volume as an export, for a device of a host instead of a connection. The export's Close gives
// the handle up.
func Attached(v *volume.Volume) nbd.Export {
	return &export{v, func() {}}
}
