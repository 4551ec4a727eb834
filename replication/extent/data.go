package extent

import (
	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/segment"
)

type dataHeader struct {
	Group      storage.GroupID
	Volume     storage.VolumeID
	Extent     storage.ExtentIndex
	Epoch      storage.Epoch
	FirstBlock uint16
}

func (s *Store) appendData(dataHeader, []byte) (data, end segment.Position, err error) {
	return 0, 0, storage.E("append", storage.KindUnsupported, "data", nil)
}
