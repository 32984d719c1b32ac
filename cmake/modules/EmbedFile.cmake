# A file's bytes as the initialiser of an array of unsigned char:
#   cmake -DINPUT=file -DOUTPUT=file.inc -P EmbedFile.cmake
file(READ ${INPUT} bytes HEX)
string(REGEX REPLACE "(..)" "0x\\1," bytes "${bytes}")
string(REGEX REPLACE "((0x..,)(0x..,)(0x..,)(0x..,)(0x..,)(0x..,)(0x..,)(0x..,))"
       "\\1\n" bytes "${bytes}")
file(WRITE ${OUTPUT} "${bytes}")
