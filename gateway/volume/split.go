package volume

import storage "github.com/storaged/storaged"

// part is a piece of a volume's range that fits one request to one group.
type part struct {
	extent storage.ExtentIndex
	offset uint32 // in the extent
	length uint32 // offset+length <= ExtentSize
	clear  bool   // whole blocks to be cleared; otherwise data
}

// end returns where the part ends in the volume.
func (p part) end() int64 {
	return int64(p.extent)*storage.ExtentSize + int64(p.offset) + int64(p.length)
}

// nextData returns the part of the range [off, end), off < end, that the first request with data covers. It ends at
// the latest where its extent ends. It touches at most as many blocks as one entry holds after the leader has
// completed the edges.
func nextData(off, end int64) part {
	extent := off / storage.ExtentSize
	stop := min(end, (extent+1)*storage.ExtentSize, blockFloor(off)+storage.MaxEntryPayloadBytes)
	return part{extent: storage.ExtentIndex(extent), offset: uint32(off % storage.ExtentSize), length: uint32(stop - off)}
}

// nextExtent returns the part of [off, end), off < end, that lies in the extent of off.
func nextExtent(off, end int64) part {
	extent := off / storage.ExtentSize
	stop := min(end, (extent+1)*storage.ExtentSize)
	return part{extent: storage.ExtentIndex(extent), offset: uint32(off % storage.ExtentSize), length: uint32(stop - off)}
}

// nextZero returns the first part of [off, end), off < end, that is to read as zeroes afterwards. Whole blocks are
// cleared, an extent at a time; partial blocks at the edges are written as data.
func nextZero(off, end int64) part {
	if off%storage.BlockSize != 0 || end-off < storage.BlockSize {
		return nextData(off, min(end, blockFloor(off)+storage.BlockSize))
	}
	p := nextExtent(off, blockFloor(end))
	p.clear = true
	return p
}

// nextClear returns the first part of [off, end), off < end, which are multiples of BlockSize.
func nextClear(off, end int64) part {
	p := nextExtent(off, end)
	p.clear = true
	return p
}

func blockFloor(off int64) int64 { return off &^ (storage.BlockSize - 1) }
func blockCeil(off int64) int64  { return blockFloor(off + storage.BlockSize - 1) }
