package catalog

// LeftOf is leftOf, for tests.
var LeftOf = leftOf
