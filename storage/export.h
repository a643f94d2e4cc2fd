// What the shared library shows: everything else is compiled hidden.
#ifndef WAVEKV_STORAGE_EXPORT_H_
#define WAVEKV_STORAGE_EXPORT_H_

#define WAVEKV_EXPORT __attribute__((visibility("default")))
// Of a public class, what is its own business.
#define WAVEKV_HIDDEN __attribute__((visibility("hidden")))

#endif  // WAVEKV_STORAGE_EXPORT_H_
